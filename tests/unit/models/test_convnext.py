"""The ConvNeXt's block, its configuration and what training asks of it."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from kawara.errors import ConfigError
from kawara.layers import taps
from kawara.models import ConvNeXt, ConvNeXtConfig

SMALL = ConvNeXtConfig(image_size=(16, 24), num_classes=5, depths=(2, 1), widths=(6, 8), stem_stride=2, layer_scale=0.5)


def shaken(config: ConvNeXtConfig) -> ConvNeXt:
    """A model in float64 whose parameters are all away from their start, as after some training."""
    torch.manual_seed(0)
    model = ConvNeXt(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def slow_norm(vector: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    variance = ((vector - vector.mean()) ** 2).mean()
    return (vector - vector.mean()) / (variance + 1e-6).sqrt() * weight + bias


@pytest.mark.parametrize("layer_scale", [0.5, None])
@torch.no_grad()
def test_the_block_cell_by_cell(layer_scale: float | None) -> None:
    model = shaken(dataclasses.replace(SMALL, layer_scale=layer_scale))
    block = model.stages[0].blocks[1]
    maps = torch.randn(1, 6, 5, 4, dtype=torch.float64)
    output = block(maps)
    padded = torch.nn.functional.pad(maps, [3, 3, 3, 3])
    for i, j in ((0, 0), (2, 3), (4, 1)):
        window = padded[0, :, i : i + 7, j : j + 7]
        cell = torch.stack([(window[c] * block.conv_dw.weight[c, 0]).sum() + block.conv_dw.bias[c] for c in range(6)])
        hidden = block.mlp.fc1.weight @ slow_norm(cell, block.norm.weight, block.norm.bias) + block.mlp.fc1.bias
        hidden = torch.tensor([x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in hidden.tolist()], dtype=torch.float64)
        branch = block.mlp.fc2.weight @ hidden + block.mlp.fc2.bias
        expected = maps[0, :, i, j] + (branch if layer_scale is None else block.gamma * branch)
        torch.testing.assert_close(output[0, :, i, j], expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_stem_halving_and_the_norm_after_the_mean() -> None:
    model = shaken(SMALL)
    image = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    cell = torch.einsum("cij,ocij->o", image[1, :, 4:6, 10:12], model.stem[0].weight) + model.stem[0].bias
    torch.testing.assert_close(model.stem(image)[1, :, 2, 5], slow_norm(cell, model.stem[1].weight, model.stem[1].bias))
    norm, halving = model.stages[1].downsample
    maps = torch.randn(1, 6, 4, 6, dtype=torch.float64)
    cells = torch.stack([slow_norm(maps[0, :, 2 + i, 4 + j], norm.weight, norm.bias) for i in (0, 1) for j in (0, 1)], dim=1)
    expected = torch.einsum("cij,ocij->o", cells.unflatten(1, (2, 2)), halving.weight) + halving.bias
    torch.testing.assert_close(model.stages[1].downsample(maps)[0, :, 1, 2], expected)
    features = model.features(image)
    mean = features.tokens[0].mean(dim=0)
    torch.testing.assert_close(features.pooled[0], slow_norm(mean, model.head["norm"].weight, model.head["norm"].bias))
    torch.testing.assert_close(model(image), features.pooled @ model.head["fc"].weight.T + model.head["fc"].bias)


def test_initialisation_follows_its_table() -> None:
    torch.manual_seed(0)
    model = ConvNeXt(dataclasses.replace(SMALL, widths=(32, 64), layer_scale=1e-6))
    block = model.stages[1].blocks[0]
    for tensor in (block.conv_dw.weight, block.mlp.fc1.weight, block.mlp.fc2.weight, model.stages[1].downsample[1].weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.all(block.gamma == 1e-6)
    assert not block.conv_dw.bias.any()
    assert model(torch.randn(2, 3, 16, 24)).abs().max() == 0


def test_layer_index_gives_the_halving_to_the_block_after_it() -> None:
    model = ConvNeXt(SMALL)
    index = {name: model.layer_index(name) for name, _ in model.named_parameters()}
    assert {name for name, layer in index.items() if layer == 0} == {"stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"}
    assert index["stages.0.blocks.1.gamma"] == 2
    assert index["stages.1.downsample.0.weight"] == index["stages.1.blocks.0.conv_dw.weight"] == 3
    assert index["head.norm.weight"] == index["head.fc.weight"] == model.num_layers == 4
    assert model.head_parameters() == {"head.fc.weight", "head.fc.bias"}
    assert {name for name in index if model.get_parameter(name).ndim == 1} == model.no_decay()
    assert set(model.block_names) <= set(taps.places(model))


@pytest.mark.parametrize(("stem_stride", "size", "grid"), [(1, (5, 8), (2, 4)), (2, (28, 31), (7, 7)), (4, (16, 23), (2, 2))])
def test_sizes_that_are_no_multiple_lose_their_edge(stem_stride: int, size: tuple[int, int], grid: tuple[int, int]) -> None:
    model = ConvNeXt(dataclasses.replace(SMALL, stem_stride=stem_stride)).eval()
    features = model.features(torch.randn(2, 3, *size))
    assert features.grid == grid
    assert features.tokens.shape == (2, grid[0] * grid[1], 8)


def test_an_image_without_a_single_cell_says_so() -> None:
    model = ConvNeXt(SMALL)
    with pytest.raises(ConfigError, match="4 px and more"):
        model(torch.zeros(1, 3, 16, 3))
    with pytest.raises(ConfigError, match="stem_stride"):
        dataclasses.replace(SMALL, image_size=(3, 16))


def test_maps_lie_channels_last_whatever_the_image() -> None:
    for channels in (1, 3):
        model = ConvNeXt(dataclasses.replace(SMALL, channels=channels))
        with taps.read(model, "stages.0.blocks.0.conv_dw", "stages.1") as found:
            model(torch.randn(2, channels, 16, 24))
        assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in found.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "odd"),
        ({"stem_stride": 0}, "stem_stride"),
        ({"activation": "swish"}, "value of activation"),
        ({"widths": (6,)}, "one number for each stage"),
    ],
)
def test_options_that_do_not_fit_say_so(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **options)
