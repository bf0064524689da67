"""The parts every model shares."""

import pytest
import torch
from torch import nn

from kawara.errors import ConfigError
from kawara.models import create_model
from kawara.models.interface import mean_of_heads, names_without_decay


def test_mean_of_heads() -> None:
    one, two = torch.ones(2, 3), torch.full((2, 3), 3.0)
    assert mean_of_heads((one,)) is one
    torch.testing.assert_close(mean_of_heads((one, two)), torch.full((2, 3), 2.0))


def test_vectors_and_named_tensors_are_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    assert names_without_decay(model, ["0.weight", "absent"]) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert names_without_decay(model) == {"0.bias", "1.weight", "1.bias"}


def test_what_is_frozen_gets_no_gradient_and_rests() -> None:
    model = create_model("vit_femto_conv_4", num_classes=2, image_size=16, stochastic_depth=0.5, dropout=0.5)
    model.freeze(2)  # the stem and the first of three blocks
    model.train()
    assert not any(p.requires_grad for name, p in model.named_parameters() if model.layer_index(name) < 2)
    assert all(p.requires_grad for name, p in model.named_parameters() if model.layer_index(name) >= 2)
    norm = model.get_submodule("patch_embed.convolutions.1")
    assert isinstance(norm, nn.BatchNorm2d)
    before = norm.running_mean.clone()
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    torch.testing.assert_close(norm.running_mean, before)  # its statistics do not move
    assert [block.training for block in model.blocks] == [False, True, True]
    assert model.blocks[0].attn.qkv.weight.grad is None
    assert model.blocks[1].attn.qkv.weight.grad is not None


def test_a_frozen_backbone_leaves_the_heads() -> None:
    model = create_model("vit_femto_4", num_classes=2, class_token=True, pool="class", distillation_token=True)
    model.freeze()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "head.weight", "head.bias", "head_dist.weight", "head_dist.bias"
    }  # fmt: skip


@pytest.mark.parametrize("num_layers", [0, 5])
def test_only_blocks_that_exist_can_be_frozen(num_layers: int) -> None:
    with pytest.raises(ConfigError, match="1 to 3 blocks"):
        create_model("vit_femto_4", num_classes=2).freeze(num_layers)
