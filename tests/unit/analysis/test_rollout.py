"""Rollout against its definition, worked by hand and as a product of matrices; its gradient against explicit attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kawara.analysis import observed_attention as room
from kawara.analysis.attention import attention_maps
from kawara.analysis.observed_attention import token_layout
from kawara.analysis.rollout import attention_rollout, gradient_rollout, rollout
from kawara.errors import ConfigError
from kawara.layers import attention as layers
from kawara.models import VisionTransformer, ViTConfig


def small_vit(**options) -> VisionTransformer:
    torch.manual_seed(0)
    options = {"image_size": (12, 20), "patch_size": 4, "width": 24, "depth": 3, "heads": 3, "mlp_hidden": 32, "num_classes": 5} | options
    model = VisionTransformer(ViTConfig(**options))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double()


def images(number: int = 2) -> Tensor:
    return torch.randn(number, 3, 12, 20, generator=torch.Generator().manual_seed(1)).double()


def head_averages(model: VisionTransformer, image: Tensor) -> list[Tensor]:
    layout = token_layout(model, image)
    queries = [*layout.prefix, *((row, column) for row in range(3) for column in range(5))]
    return list(torch.from_numpy(attention_maps(model, image, queries=queries).weights).double().mean(dim=2).unbind(dim=1))


def test_two_layers_by_hand() -> None:
    first = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    second = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    # (A₁ + I)/2 = [[3/4, 1/4], [0, 1]], (A₂ + I)/2 = [[1/2, 1/2], [1/2, 1/2]]
    torch.testing.assert_close(rollout([first, second]), torch.tensor([[0.375, 0.625], [0.375, 0.625]]))


def test_rows_sum_to_one_identity_stays_and_uniform_stays_uniform() -> None:
    weights = [torch.rand(4, 9, 9, dtype=torch.float64).softmax(dim=-1) for _ in range(5)]
    torch.testing.assert_close(rollout(weights).sum(dim=-1), torch.ones(4, 9, dtype=torch.float64))
    identity = torch.eye(9)
    torch.testing.assert_close(rollout([identity] * 5), identity)
    uniform = rollout([torch.full((9, 9), 1 / 9)] * 5)
    torch.testing.assert_close(uniform[0, 1:], uniform[0, 1].expand(8))


def test_a_model_of_uniform_attention_gives_a_uniform_map() -> None:
    model = small_vit()
    for block in model.blocks:
        nn.init.zeros_(block.attn.qkv.weight)
        nn.init.zeros_(block.attn.qkv.bias)
    found = attention_rollout(model, images())
    # After three halvings 1/8 is still at the class token, the rest is spread over 16 tokens.
    np.testing.assert_allclose(found, 7 / 8 / 16, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"registers": 2, "class_position": False}, {"class_token": False, "pool": "mean"}])
def test_the_row_that_is_carried_is_a_row_of_the_product(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_vit(**options)
    num_prefix = model.config.num_prefix
    expected = rollout(head_averages(model, images())).numpy()
    monkeypatch.setattr(room, "CHUNK_ENTRIES", 700)
    row = expected[:, 0] if model.config.class_token else expected.mean(axis=1)
    np.testing.assert_allclose(attention_rollout(model, images()), row[:, num_prefix:].reshape(2, 3, 5), rtol=1e-5)
    patch = attention_rollout(model, images(), start=(1, 2))
    np.testing.assert_allclose(patch, expected[:, num_prefix + 7, num_prefix:].reshape(2, 3, 5), rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"distillation_token": True}, {"class_token": False, "pool": "mean"}, {"layer_scale": 0.5, "bias": False}]
)
def test_gradient_rollout_equals_autograd_through_explicit_attention(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_vit(**options)
    targets = torch.tensor([3, 1])
    found = gradient_rollout(model, images(), targets)

    kept = []
    weights = layers.attention_weights
    monkeypatch.setattr(layers, "attention_weights", lambda *given: kept.append(weights(*given)) or kept[-1])
    for block in model.blocks:
        block.attn.fused = False
    logits = sum(model.apply_heads(model.features(images())))
    logits = logits / 2 if "distillation_token" in options else logits
    gradients = torch.autograd.grad(logits[[0, 1], targets].sum(), kept)
    num_tokens = kept[0].shape[-1]
    expected = torch.eye(num_tokens, dtype=torch.float64).expand(2, -1, -1)
    for attention, gradient in zip(kept, gradients):
        expected = expected + (gradient * attention).clamp_min(0).mean(dim=1).detach() @ expected
    expected = expected - torch.eye(num_tokens, dtype=torch.float64)
    row = expected[:, 0] if model.config.class_token else expected.mean(dim=1)
    np.testing.assert_allclose(found, row[:, model.config.num_prefix :].reshape(2, 3, 5).numpy(), rtol=1e-5)


def test_each_class_has_its_own_gradient_map_and_none_is_the_predicted_one() -> None:
    model = small_vit()
    predicted = model(images()).argmax(dim=1)
    np.testing.assert_array_equal(gradient_rollout(model, images()), gradient_rollout(model, images(), predicted))
    assert not np.allclose(gradient_rollout(model, images()), gradient_rollout(model, images(), (predicted + 1) % 5))


def test_frozen_models_and_no_grad_make_no_difference() -> None:
    model = small_vit()
    expected = gradient_rollout(model, images())
    model.requires_grad_(False)
    with torch.no_grad():
        np.testing.assert_array_equal(gradient_rollout(model, images()), expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_explained() -> None:
    with pytest.raises(ConfigError, match="no head"):
        gradient_rollout(small_vit(num_classes=0), images())
    with pytest.raises(ConfigError, match=r"allowed: \(2,\) in 0 to 4"):
        gradient_rollout(small_vit(), images(), torch.tensor([0, 5]))
    with pytest.raises(ConfigError, match="at least one layer"):
        rollout([])
