"""Attention maps against softmax in NumPy, and what keeps a wrong one from being returned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kawara.analysis import observed_attention as room
from kawara.analysis.attention import AttentionMaps, attention_maps
from kawara.analysis.observed_attention import attention_places, observe_attention, token_layout
from kawara.errors import ConfigError, InternalError, UnknownNameError
from kawara.layers import taps
from kawara.models import VisionTransformer, ViTConfig, create_model

GRIDS = {
    "class": {},
    "distilled": {"distillation_token": True},
    "registers": {"registers": 4, "class_position": False},
    "no class token": {"class_token": False, "pool": "mean"},
    "registers alone": {"class_token": False, "pool": "mean", "registers": 2, "final_norm": "pooled"},
}


def small_vit(dtype: torch.dtype = torch.float32, **options) -> VisionTransformer:
    """A ViT on 7×13 patches whose attention is far from uniform."""
    torch.manual_seed(0)
    options = {"image_size": (28, 52), "patch_size": 4, "width": 24, "depth": 3, "heads": 3, "mlp_hidden": 32, "num_classes": 5} | options
    model = VisionTransformer(ViTConfig(**options))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def image_for(model: VisionTransformer, number: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    parameter = next(model.parameters())
    return torch.randn(number, 3, *model.config.image_size, generator=generator).to(parameter.dtype)


def softmax_in_numpy(model: VisionTransformer, image: Tensor) -> np.ndarray:
    """(B, L, M, N, N) from the outputs of the qkv layers alone."""
    layers = []
    with torch.no_grad(), taps.read(model, "blocks.*.attn.qkv") as found:
        model.features(image)
    for qkv in found.values():
        batch, num_tokens, width3 = qkv.shape
        query, key, _ = qkv.double().numpy().reshape(batch, num_tokens, 3, model.config.heads, -1).transpose(2, 0, 3, 1, 4)
        scores = query @ key.swapaxes(-1, -2) / np.sqrt(width3 / 3 / model.config.heads)
        exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
        layers.append(exponentials / exponentials.sum(axis=-1, keepdims=True))
    return np.stack(layers, axis=1)


@pytest.mark.parametrize("options", GRIDS.values(), ids=GRIDS)
def test_maps_equal_softmax_in_numpy(options: dict) -> None:
    model = small_vit(**options)
    image = image_for(model)
    num_prefix = model.config.num_prefix
    prefix = token_layout(model, image).prefix
    maps = attention_maps(model, image, queries=[*prefix, (0, 0), (6, 12), (3, 1), "mean"])
    expected = softmax_in_numpy(model, image)
    rows = [*range(num_prefix), num_prefix, num_prefix + 90, num_prefix + 40]
    np.testing.assert_allclose(maps.weights[:, :, :, :-1], expected[:, :, :, rows], atol=2e-6)
    np.testing.assert_allclose(maps.weights[:, :, :, -1], expected[:, :, :, num_prefix:].mean(axis=3), atol=2e-6)
    np.testing.assert_allclose(maps.weights.sum(axis=-1), 1, atol=1e-5)
    assert maps.patches.shape == (2, 3, 3, len(rows) + 1, 7, 13)
    assert maps.prefix.shape[-1] == num_prefix
    np.testing.assert_array_equal(maps.patches[0, 1, 2, 0, 4, 5], maps.weights[0, 1, 2, 0, num_prefix + 4 * 13 + 5])
    assert max(maps.deviation) < 1e-5


def test_only_the_asked_blocks_and_heads_are_returned() -> None:
    model = small_vit()
    image = image_for(model)
    everything = attention_maps(model, image)
    some = attention_maps(model, image, blocks=[-1, 0], heads=[2])
    assert some.places == ("blocks.2.attn", "blocks.0.attn")
    np.testing.assert_array_equal(some.weights, everything.weights[:, [2, 0]][:, :, [2]])


def test_a_prefix_is_named_and_the_default_query_is_what_the_head_reads() -> None:
    model = small_vit(distillation_token=True, registers=2, class_position=False)
    layout = token_layout(model, image_for(model))
    assert layout.prefix == ("class", "distillation", "register 1", "register 2")
    assert (layout.grid, layout.cell_px, layout.num_tokens) == ((7, 13), (4, 4), 95)
    assert attention_maps(model, image_for(model)).queries == ("class",)
    pooled = small_vit(class_token=False, pool="mean")
    assert attention_maps(pooled, image_for(pooled)).queries == ("mean",)


def test_a_stem_that_rounds_up_keeps_its_own_patch_size() -> None:
    model = small_vit(stem="conv", patch_size=8, image_size=(28, 28), stem_norm="layer")
    layout = token_layout(model, image_for(model))
    assert (layout.grid, layout.cell_px) == ((4, 4), (8, 8))


def test_the_model_runs_its_fused_kernel_and_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_vit(dropout=0.5, attention_dropout=0.5).train()
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *given, **options: calls.append(1) or fused(*given, **options)
    )
    maps = attention_maps(model, image_for(model))
    assert len(calls) == 2 * model.config.depth  # once to learn the layout from one image
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    np.testing.assert_array_equal(attention_maps(model, image_for(model)).weights, maps.weights)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-10), (torch.bfloat16, 5e-2)])
def test_number_formats(dtype: torch.dtype, allowed: float) -> None:
    model = small_vit(dtype)
    maps = attention_maps(model, image_for(model))
    assert max(maps.deviation) < allowed
    np.testing.assert_allclose(maps.weights.sum(axis=-1), 1, atol=1e-5)


def test_under_autocast() -> None:
    model = small_vit()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = attention_maps(model, image_for(model))
    assert 1e-5 < max(maps.deviation) < 5e-2


@pytest.mark.parametrize("change", ["scaled scores", "values of another token", "answer"])
def test_what_is_not_the_models_own_attention_is_not_returned(change: str) -> None:
    """A layer that hides a change of its attention from `query_key_value` is found out, in the block where it happens."""
    model = small_vit()
    layer = model.blocks[1].attn
    attend = layer.attend
    if change == "scaled scores":
        layer.attend = lambda query, key, value: attend(1.02 * query, key, value)
    elif change == "values of another token":
        layer.attend = lambda query, key, value: attend(query, key, value.roll(1, dims=2))
    else:
        layer.attend = lambda query, key, value: 1.001 * attend(query, key, value)
    with pytest.raises(InternalError, match=r"blocks\.1\.attn is not what the model did(.|\n)*distance of \d\.\de-0\d") as caught:
        attention_maps(model, image_for(model))
    assert caught.value.allowed == "1e-04"
    assert attention_maps(model, image_for(model), blocks=[0]).places == ("blocks.0.attn",)


@pytest.mark.parametrize("factor", [1.0001, float("nan")])
def test_rows_that_do_not_sum_to_one_are_not_returned(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    model = small_vit()
    weights = room.attention_weights
    monkeypatch.setattr(room, "attention_weights", lambda query, key: factor * weights(query, key))
    with pytest.raises(InternalError, match=r"blocks\.0\.attn is not one: its rows do not sum to 1"):
        attention_maps(model, image_for(model))


def test_a_layer_that_answers_some_tokens_only_is_an_error() -> None:
    model = small_vit()
    layer = model.blocks[0].attn
    forward = layer.forward
    layer.forward = lambda tokens, num_queries, merging: forward(tokens, 1)
    with pytest.raises(InternalError, match=r"blocks\.0\.attn answered only some"):
        attention_maps(model, image_for(model))


def test_4096_tokens_need_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK_ENTRIES", 2**21)
    model = small_vit(image_size=(256, 256), class_token=False, pool="mean", depth=1, width=8, heads=2)
    sizes = []
    weights = room.attention_weights
    monkeypatch.setattr(
        room, "attention_weights", lambda query, key: sizes.append(key.shape[-2] * query[..., 0].numel()) or weights(query, key)
    )
    maps = attention_maps(model, image_for(model, 1), queries=[(1, 2)])
    assert maps.weights.shape == (1, 1, 2, 1, 4096)
    assert sizes == [2 * 4096]
    attention_maps(model, image_for(model, 1), queries=["mean"])
    assert max(sizes) <= 2**21
    assert sum(sizes[1:]) == 2 * 4096**2


def test_blocks_heads_and_queries_that_do_not_exist() -> None:
    model = small_vit()
    image = image_for(model)
    with pytest.raises(ConfigError, match="no such attention layer"):
        attention_maps(model, image, blocks=[3])
    with pytest.raises(ConfigError, match="no such head"):
        attention_maps(model, image, heads=[-4])
    with pytest.raises(ConfigError, match="row 0 to 6, column 0 to 12"):
        attention_maps(model, image, queries=[(7, 0)])
    with pytest.raises(UnknownNameError, match="distillation"):
        attention_maps(model, image, queries=["distillation"])


def test_a_model_without_attention_is_told_what_works() -> None:
    model = small_vit()
    model.blocks = nn.ModuleList([nn.Identity()])
    assert attention_places(model) == []
    with pytest.raises(ConfigError, match="Grad-CAM or occlusion"):
        attention_maps(model, image_for(model))


def test_layers_on_another_grid_are_refused() -> None:
    model = small_vit()
    block = model.blocks[1]
    forward = block.forward
    block.forward = lambda tokens, **options: torch.cat([forward(tokens[:, :-1]), tokens[:, -1:]], dim=1)
    with pytest.raises(ConfigError, match=r"blocks\.1\.attn are not those of the model's feature grid"):
        observe_attention(model, image_for(model), lambda attention: None)


def test_the_record_keeps_arrays() -> None:
    maps = attention_maps(small_vit(), image_for(small_vit()))
    assert isinstance(maps, AttentionMaps)
    assert maps.weights.dtype == np.float32


def test_merged_tokens_are_not_taken_for_patches() -> None:
    model = create_model("vit_femto_4", num_classes=3, merge=3)
    with pytest.raises(ConfigError, match=r"merges tokens[\s\S]*set_merging\(0\)"):
        observe_attention(model, torch.zeros(1, 3, 32, 32), lambda layer: None)
