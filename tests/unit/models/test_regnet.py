"""The rule of the RegNets' widths, their block and what training asks of them."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from kawara.errors import ConfigError
from kawara.layers import taps
from kawara.models import MODELS, RegNet, RegNetConfig, create_model
from kawara.models.regnet import stages_by_rule

SMALL = RegNetConfig(image_size=(32, 32), num_classes=5, depths=(1, 2), widths=(8, 16), group_width=4, stem_width=12)

# Widths, depths and group width as published for 224 px.
PUBLISHED = {
    "400mf": ((48, 104, 208, 440), (1, 3, 6, 6), 8),
    "800mf": ((64, 128, 320, 768), (1, 3, 8, 2), 16),
    "1_6gf": ((48, 120, 336, 888), (2, 6, 17, 2), 24),
    "3_2gf": ((72, 216, 576, 1512), (2, 5, 13, 1), 24),
    "4gf": ((128, 192, 512, 1088), (2, 6, 12, 2), 64),
    "8gf": ((168, 448, 896, 2016), (2, 4, 10, 1), 56),
    "12gf": ((224, 448, 896, 2240), (2, 5, 11, 1), 112),
    "16gf": ((224, 448, 1232, 3024), (2, 4, 11, 1), 112),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_rule_gives_the_published_stages(name: str) -> None:
    config = MODELS[f"regnety_{name}"].config
    assert (config.widths, config.depths, config.group_width) == PUBLISHED[name]
    assert config.squeeze_ratio == 0.25


def test_the_rule_by_hand() -> None:
    # u = 8, 16, …, 80; log₂(u / 8) = log₂ 1 … log₂ 10 rounds to 0 1 2 2 2 3 3 3 3 3
    assert stages_by_rule(8, 8.0, 2.0, 10, 8) == ((1, 1, 3, 5), (8, 16, 32, 64))
    # a stage narrower than the group is one group, as wide as it was
    assert stages_by_rule(8, 8.0, 2.0, 10, 24) == ((1, 1, 3, 5), (8, 16, 24, 72))


@torch.no_grad()
def test_the_block_gates_with_a_quarter_of_its_input_before_the_last_convolution() -> None:
    torch.manual_seed(0)
    model = RegNet(SMALL).double().eval()
    for tensor in (*model.parameters(), *(buffer for name, buffer in model.named_buffers() if "running_var" in name)):
        tensor.uniform_(0.2, 1.0)
    block = model.s1.b1
    assert block.se.fc1.weight.shape == (3, 8, 1, 1)  # a quarter of the 12 channels of the stem
    assert model.s2.b1.se.fc1.weight.shape == (2, 16, 1, 1)
    assert block.conv2.conv.weight.shape == (8, 4, 3, 3)

    def norm(maps: torch.Tensor, layer: torch.nn.BatchNorm2d) -> torch.Tensor:
        return F.batch_norm(maps, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=1e-5)

    maps = torch.randn(2, 12, 9, 7, dtype=torch.float64)
    branch = norm(F.conv2d(maps, block.conv1.conv.weight), block.conv1.bn).relu()
    branch = norm(F.conv2d(branch, block.conv2.conv.weight, stride=2, padding=1, groups=2), block.conv2.bn).relu()
    means = branch.mean(dim=(2, 3), keepdim=True)
    hidden = F.conv2d(means, block.se.fc1.weight, block.se.fc1.bias).relu()
    branch = branch / (1 + torch.exp(-F.conv2d(hidden, block.se.fc2.weight, block.se.fc2.bias)))
    branch = norm(F.conv2d(branch, block.conv3.conv.weight), block.conv3.bn)
    shortcut = norm(F.conv2d(maps, block.downsample.conv.weight, stride=2), block.downsample.bn)
    torch.testing.assert_close(block(maps), (shortcut + branch).relu(), rtol=1e-10, atol=1e-10)


def test_initialisation_follows_its_table() -> None:
    torch.manual_seed(0)
    model = RegNet(dataclasses.replace(SMALL, widths=(64, 64), group_width=16))
    block = model.s2.b2
    assert block.conv2.conv.weight.std().item() == pytest.approx(math.sqrt(2 / (16 * 9)), rel=0.05)
    assert block.conv1.conv.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    assert not block.conv3.bn.weight.any()
    assert block.conv2.bn.weight.min() == 1
    maps = torch.rand(2, 64, 4, 4)
    torch.testing.assert_close(block(maps), maps, rtol=0, atol=0)
    assert model(torch.randn(2, 3, 32, 32)).abs().max() == 0


def test_layer_index_head_and_places() -> None:
    model = RegNet(SMALL)
    index = {name: model.layer_index(name) for name, _ in model.named_parameters()}
    assert {name for name, layer in index.items() if layer == 0} == {"stem.conv.weight", "stem.bn.weight", "stem.bn.bias"}
    assert index["s1.b1.se.fc2.bias"] == 1
    assert index["s2.b2.conv3.bn.weight"] == 3
    assert index["head.fc.weight"] == model.num_layers == 4
    assert model.head_parameters() == {"head.fc.weight", "head.fc.bias"}
    assert set(model.block_names) <= set(taps.places(model))


def test_any_size_is_taken_and_the_grid_rounds_up() -> None:
    model = RegNet(SMALL).eval()
    for height, width in ((1, 1), (8, 9), (31, 17)):
        assert model.features(torch.randn(2, 3, height, width)).grid == (-(-height // 8), -(-width // 8))


def test_without_squeeze_it_is_a_regnetx() -> None:
    model = create_model("regnety_400mf", squeeze_ratio=0.0, widths=(8, 16, 24, 32), num_classes=3)
    assert not [name for name, _ in model.named_parameters() if ".se." in name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_width": 5}, "multiple of the group width 5"),
        ({"group_width": 0}, "group_width"),
        ({"squeeze_ratio": 1.5}, "share"),
        ({"depths": (1,)}, "one number for each stage"),
        ({"stochastic_depth": 1.0}, "probability"),
    ],
)
def test_options_that_do_not_fit_say_so(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **options)
