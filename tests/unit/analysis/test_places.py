"""Blocks are found by what they are, in ViTs and CNNs; activations mean the same in both layouts."""

import pytest
import torch
from torch import nn

from kawara.analysis.evaluation_mode import evaluating
from kawara.analysis.places import (
    Layout,
    as_map,
    as_tokens,
    block_places,
    depths,
    layout_of,
    representation_layers,
    skip_places,
    token_layout,
)
from kawara.errors import ConfigError
from kawara.models import create_model


def test_the_blocks_of_a_vit(vit):
    assert block_places(vit) == ["blocks.0", "blocks.1", "blocks.2"]
    assert representation_layers(vit)[:4] == ["blocks.0.attn", "blocks.0.mlp", "blocks.0", "blocks.1.attn"]
    assert representation_layers(vit, norms=True)[:5] == ["blocks.0.norm1", "blocks.0.attn", "blocks.0.norm2", "blocks.0.mlp", "blocks.0"]
    assert skip_places(vit)[:3] == ["blocks.0.skip1", "blocks.0.skip2", "blocks.1.skip1"]


def test_the_blocks_of_a_cnn_are_found_inside_its_stages(cnn):
    blocks = [f"layers.{stage}.blocks.{block}" for stage in (0, 1) for block in (0, 1)]
    assert block_places(cnn) == blocks == representation_layers(cnn)
    assert skip_places(cnn) == [f"{block}.skip" for block in blocks]


@pytest.mark.parametrize("options", [{"depth": 1}, {"stem": "conv"}, {"layer_scale": 0.1}])
def test_blocks_of_unusual_vits(options):
    model = create_model("vit_tiny_16", num_classes=2, **options)
    assert block_places(model) == [f"blocks.{index}" for index in range(options.get("depth", 12))]


def test_depths_run_from_the_first_to_the_last_block():
    model = create_model("vit_tiny_16", num_classes=2)
    assert depths(model) == ["blocks.0", "blocks.4", "blocks.7", "blocks.11"]
    assert depths(model, 1) == ["blocks.0"]
    assert len(depths(model, 50)) == 12


def test_nothing_repeated_and_no_skips_are_said(mapped):
    model = mapped(nn.Sequential(nn.Conv2d(3, 4, 3)), 4)
    with pytest.raises(ConfigError, match="no repeated blocks"):
        block_places(model)
    with pytest.raises(ConfigError, match="no skip connections"):
        skip_places(model)


def test_layouts(vit, cnn):
    image = torch.randn(2, 3, 12, 8)
    assert token_layout(vit, image) == Layout((3, 2), 1)
    assert token_layout(cnn, image) == Layout((6, 4), 0)
    layout = Layout((3, 2), 1)
    maps = torch.randn(2, 5, 3, 2)
    tokens = torch.cat([torch.zeros(2, 1, 5), as_tokens(maps)], dim=1)
    assert torch.equal(as_map(tokens, layout), maps)
    assert torch.equal(as_map(maps, layout), maps)
    assert tokens[1, 1 + 2 * 2 + 1, 3] == maps[1, 3, 2, 1]
    assert layout_of(torch.randn(2, 5, 7, 4), layout) == Layout((7, 4), 0)
    for wrong in (tokens[:, 1:], tokens[:, :, 0]):
        with pytest.raises(ConfigError, match="not on the grid"):
            as_map(wrong, layout)


def test_evaluating_puts_every_mode_back(vit):
    vit.train()
    vit.blocks[1].eval()
    modes = [module.training for module in vit.modules()]
    with evaluating(vit):
        assert not any(module.training for module in vit.modules())
    assert [module.training for module in vit.modules()] == modes
    with pytest.raises(RuntimeError, match="midway"), evaluating(vit):
        raise RuntimeError("midway")
    assert [module.training for module in vit.modules()] == modes
