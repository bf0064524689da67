"""The ResNet's equations, its configuration and what training asks of it."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kawara.errors import ConfigError
from kawara.layers import taps
from kawara.models import MODELS, ResNet, ResNetConfig, create_model

BASIC = ResNetConfig(
    image_size=(16, 24), num_classes=5, block="basic", expansion=1, stem="conv3", depths=(2, 1), widths=(4, 8), stem_width=4
)  # fmt: skip
BOTTLENECK = ResNetConfig(image_size=(32, 32), num_classes=5, depths=(1, 2), widths=(4, 8), expansion=3, stem_width=6)


def shaken(config: ResNetConfig) -> ResNet:
    """A model in float64 whose parameters and running statistics are all away from their start, as after some training."""
    torch.manual_seed(0)
    model = ResNet(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return model


def slow_convolution(maps: Tensor, weight: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """The sum over channels and kernel cells, one output cell after another."""
    kernel, outputs = weight.shape[-1], weight.shape[0] // groups
    padded = F.pad(maps, [kernel // 2] * 4)
    height, width = -(-maps.shape[2] // stride), -(-maps.shape[3] // stride)
    result = maps.new_zeros(maps.shape[0], weight.shape[0], height, width)
    for group, part in enumerate(padded.chunk(groups, dim=1)):
        filters = weight[group * outputs : (group + 1) * outputs]
        for i in range(height):
            for j in range(width):
                window = part[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
                result[:, group * outputs : (group + 1) * outputs, i, j] = torch.einsum("bcij,ocij->bo", window, filters)
    return result


def slow_norm(maps: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    mean, deviation = norm.running_mean[:, None, None], (norm.running_var[:, None, None] + 1e-5).sqrt()
    return (maps - mean) / deviation * norm.weight[:, None, None] + norm.bias[:, None, None]


def slow_stage(maps: Tensor, stage: nn.Sequential, stride: int, config: ResNetConfig) -> Tensor:
    for block in stage:
        first, second = (stride, 1) if config.block == "basic" else (1, stride)
        branch = slow_norm(slow_convolution(maps, block.conv1.weight, first), block.bn1).relu()
        branch = slow_norm(slow_convolution(branch, block.conv2.weight, second, config.groups), block.bn2)
        if config.block == "bottleneck":
            branch = slow_norm(slow_convolution(branch.relu(), block.conv3.weight), block.bn3)
        if config.squeeze_reduction:
            branch = branch * block.se.gates(branch.mean(dim=(2, 3)))[:, :, None, None]
        if config.spatial_kernel:
            described = torch.stack([branch.mean(dim=1), branch.amax(dim=1)], dim=1)
            branch = branch * torch.sigmoid(slow_convolution(described, block.spatial.conv.weight) + block.spatial.conv.bias)
        if isinstance(block.downsample, nn.Sequential):
            maps = slow_norm(slow_convolution(maps, block.downsample[0].weight, stride), block.downsample[1])
        maps = (maps + branch).relu()
        stride = 1
    return maps


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (BASIC, {}),
        (BASIC, {"squeeze_reduction": 16, "channels": 1}),
        (BASIC, {"spatial_kernel": 7}),
        (BASIC, {"squeeze_reduction": 16, "spatial_kernel": 3}),
        (BOTTLENECK, {}),
        (BOTTLENECK, {"groups": 2, "squeeze_reduction": 4}),
    ],
)
@torch.no_grad()
def test_forward_is_the_equations(config: ResNetConfig, options: dict) -> None:
    config = dataclasses.replace(config, **options)
    model = shaken(config)
    image = torch.randn(2, config.channels, *config.image_size, dtype=torch.float64)
    maps = slow_norm(slow_convolution(image, model.conv1.weight, 2 if config.stem == "conv7_pool" else 1), model.bn1).relu()
    if config.stem == "conv7_pool":
        padded = F.pad(maps, [1, 1, 1, 1], value=-math.inf)
        maps = padded.unfold(2, 3, 2).unfold(3, 3, 2).amax(dim=(-1, -2))
    maps = slow_stage(slow_stage(maps, model.layer1, 1, config), model.layer2, 2, config)
    features = model.features(image)
    torch.testing.assert_close(features.feature_map, maps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(features.pooled, maps.mean(dim=(2, 3)))
    torch.testing.assert_close(model(image), maps.mean(dim=(2, 3)) @ model.fc.weight.T + model.fc.bias)


def test_shortcuts_by_padding_have_no_parameters() -> None:
    model = shaken(dataclasses.replace(BASIC, shortcut="padding"))
    maps = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    shortcut = model.layer2[0].downsample(maps)
    assert shortcut.shape == (2, 8, 3, 4)
    assert torch.equal(shortcut[:, :4], maps[:, :, ::2, ::2])
    assert not shortcut[:, 4:].any()
    assert not [name for name, _ in model.named_parameters() if "downsample" in name]


# arXiv 1512.03385, table 6: 0.27, 0.46, 0.66, 0.85 million.
@pytest.mark.parametrize(("name", "num_parameters"), [("20", 269_722), ("32", 464_154), ("44", 658_586), ("56", 853_018)])
def test_parameters_of_the_papers_small_networks(name: str, num_parameters: int) -> None:
    with torch.device("meta"):
        model = create_model(f"resnet{name}", num_classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


@pytest.mark.parametrize("size", ["femto", "pico", "nano", "micro", "mini", "milli"])
def test_each_small_vit_has_a_twin(size: str) -> None:
    counts = []
    for name in (f"vit_{size}_4", f"vit_{size}_conv_8", f"resnet_{size}", f"seresnet_{size}"):
        with torch.device("meta"):
            counts.append(sum(parameter.numel() for parameter in create_model(name, num_classes=10).parameters()))
    for vit in counts[:2]:
        assert abs(counts[2] / vit - 1) < 0.11
        assert 1.0 < counts[3] / counts[2] < 1.03


@pytest.mark.parametrize("name", ["resnet18", "seresnet50", "resnet20", "resnet_femto"])
def test_any_size_is_taken_and_the_grid_rounds_up(name: str) -> None:
    model = create_model(name, num_classes=3, widths=(4, 8, 12, 16)[: len(MODELS[name].config.depths)], stem_width=4).eval()
    stride = model.config.total_stride
    for height, width in ((1, 1), (stride - 1, stride + 1), (2 * stride + 5, 37)):
        features = model.features(torch.randn(2, 3, height, width))
        assert features.grid == (-(-height // stride), -(-width // stride))
        assert features.num_prefix == 0


def test_maps_lie_channels_last_whatever_the_image() -> None:
    for channels in (1, 3):
        model = ResNet(dataclasses.replace(BASIC, channels=channels, squeeze_reduction=4, spatial_kernel=3))
        with taps.read(model, "layer1.0", "layer2.0.conv1") as found:
            model(torch.randn(2, channels, 16, 24))
        assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in found.values())


def test_blocks_start_as_their_shortcut() -> None:
    for config in (BASIC, BOTTLENECK):
        model = ResNet(config)
        maps = torch.rand(2, config.stem_width, 6, 6)
        torch.testing.assert_close(model.layer1[0](maps), model.layer1[0].downsample(maps).relu(), rtol=0, atol=0)
        started = ResNet(dataclasses.replace(config, zero_residual=False))
        assert started.layer1[0].last_norm.weight.min() == 1


def test_initialisation_follows_its_table() -> None:
    torch.manual_seed(0)
    model = ResNet(dataclasses.replace(BOTTLENECK, widths=(32, 64), stem_width=64, squeeze_reduction=4))
    block = model.layer2[1]
    assert model.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 49)), rel=0.05)
    assert block.conv2.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)
    assert block.se.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 48), rel=0.05)
    assert not block.se.fc1.bias.any()
    assert block.bn3.weight.max() == 0
    assert model(torch.randn(2, 3, 32, 32)).abs().max() == 0


def test_layer_index_and_decay() -> None:
    model = ResNet(dataclasses.replace(BASIC, squeeze_reduction=16))
    index = {name: model.layer_index(name) for name, _ in model.named_parameters()}
    assert {name for name, layer in index.items() if layer == 0} == {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert index["layer1.1.bn2.weight"] == 2
    assert index["layer2.0.downsample.0.weight"] == index["layer2.0.se.fc1.weight"] == 3
    assert index["fc.weight"] == model.num_layers == 4
    assert set(index) - model.no_decay() == {name for name in index if name.endswith("weight") and model.get_parameter(name).ndim > 1}
    assert model.head_parameters() == {"fc.weight", "fc.bias"}
    assert set(model.block_names) <= set(taps.places(model))


def test_layers_are_counted_apart_beyond_ten() -> None:
    model = ResNet(dataclasses.replace(BASIC, depths=(12, 1)))
    assert model.layer_index("layer1.1.bn2.weight") == 2
    assert model.layer_index("layer1.11.bn2.weight") == 12


def test_reset_head_starts_at_zero_and_keeps_the_backbone() -> None:
    model = shaken(BASIC)
    image = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    pooled = model.features(image).pooled
    model.reset_head(7)
    assert torch.equal(model(image), torch.zeros(2, 7, dtype=torch.float64))
    assert torch.equal(model.features(image).pooled, pooled)
    model.reset_head(0)
    torch.testing.assert_close(model(image), pooled)


def test_dropout_and_stochastic_depth_act_in_training_only() -> None:
    for option in ("dropout", "stochastic_depth"):
        model = shaken(dataclasses.replace(BASIC, **{option: 0.5}))
        image = torch.randn(8, 3, 16, 24, dtype=torch.float64)
        assert torch.equal(model(image), model(image)), option
        for module in model.modules():
            module.training = not isinstance(module, nn.BatchNorm2d)
        assert not torch.equal(model(image), model(image)), option
    rates = [model.get_submodule(f"{name}.skip.stochastic_depth").rate for name in model.block_names]
    assert rates == [0.0, 0.25, 0.5]


def test_a_skip_connection_can_be_taken_away() -> None:
    model = shaken(BASIC)
    image = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    with taps.replace(model, {"layer1.1.skip": lambda output, inputs: inputs[1]}):
        without = model(image)
    assert not torch.allclose(without, model(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (2, 2)}, "one number for each stage"),
        ({"depths": (2, 0), "widths": (4, 8)}, "at least one block"),
        ({"depths": (), "widths": ()}, "one number for each stage"),
        ({"expansion": 4}, "only in bottlenecks"),
        ({"groups": 2}, "only in bottlenecks"),
        ({"block": "bottleneck", "groups": 3}, "multiple of groups"),
        ({"block": "preact"}, "value of block"),
        ({"stem": "conv5"}, "value of stem"),
        ({"shortcut": "padding", "widths": (8, 8, 4, 4)}, "add channels"),
        ({"shortcut": "padding", "stem_width": 6}, "add channels"),
        ({"squeeze_reduction": -1}, "negative"),
        ({"spatial_kernel": 4}, "odd"),
        ({"spatial_kernel": -1}, "odd"),
        ({"stochastic_depth": 1.0}, "probability"),
        ({"dropout": -0.1}, "probability"),
        ({"channels": 0}, "channels"),
        ({"num_classes": -1}, "num_classes"),
        ({"image_size": (0, 8)}, "image size"),
    ],
)
def test_options_that_do_not_fit_say_so(options: dict, message: str) -> None:
    four = dataclasses.replace(BASIC, depths=(1, 1, 1, 1), widths=(4, 4, 8, 8))
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(four, **options)


def test_images_of_the_wrong_shape_say_what_is_wanted() -> None:
    with pytest.raises(ConfigError, match=r"\(batch, 3, height, width\)"):
        ResNet(BASIC)(torch.zeros(1, 1, 16, 24))
