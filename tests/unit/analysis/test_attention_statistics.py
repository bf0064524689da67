"""Attention distance against the known values of uniform and identity attention and against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kawara.analysis import observed_attention as room
from kawara.analysis.attention import attention_maps
from kawara.analysis.attention_statistics import (
    attention_distance,
    attention_statistics,
    head_agreement,
    patch_distances,
    uniform_distance,
)
from kawara.errors import DataError
from kawara.models import VisionTransformer, ViTConfig


def small_vit(scale: float = 0.3, **options) -> VisionTransformer:
    torch.manual_seed(0)
    options = {"image_size": (12, 20), "patch_size": 4, "width": 24, "depth": 2, "heads": 3, "mlp_hidden": 32, "num_classes": 5} | options
    model = VisionTransformer(ViTConfig(**options))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=scale)
    return model


def images(number: int, size: tuple[int, int] = (12, 20)) -> Tensor:
    return torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("side", "patch", "expected"), [(14, 16, 116.49), (7, 32, 115.50), (16, 14, 116.57), (24, 16, 200.05)])
def test_uniform_attention_has_its_known_distance(side: int, patch: int, expected: float) -> None:
    distances = patch_distances((side, side), (patch, patch))
    uniform = torch.full((side**2, side**2), 1 / side**2)
    assert attention_distance(uniform.double(), distances).mean().item() == pytest.approx(expected, abs=0.006)
    assert uniform_distance((side, side), (patch, patch)) == pytest.approx(expected, abs=0.006)


def test_identity_attention_has_distance_0_and_the_corners_are_farthest() -> None:
    distances = patch_distances((14, 14), (16, 16))
    assert attention_distance(torch.eye(196, dtype=torch.float64), distances).abs().max().item() == 0
    assert distances.max().item() == pytest.approx(294.16, abs=0.005)


def test_every_number_equals_plain_loops() -> None:
    model = small_vit(registers=1, class_position=False)
    found = attention_statistics(model, images(3).split(2))
    weights = attention_maps(model, images(3), queries=[(row, column) for row in range(3) for column in range(5)]).weights.astype(float)
    distance, entropy, agreement, prefix = np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(2), np.zeros((2, 3, 2))
    for picture in weights:
        for layer, heads in enumerate(picture):
            for query in range(15):
                for head in range(3):
                    row = heads[head, query]
                    entropy[layer, head] -= sum(value * math.log(value) for value in row)
                    prefix[layer, head] += row[:2]
                    for key in range(15):
                        distance[layer, head] += row[2 + key] * 4 * math.dist(divmod(query, 5), divmod(key, 5))
                agreement[layer] += np.corrcoef(heads[:, query])[[0, 0, 1], [1, 2, 2]].mean()
    np.testing.assert_allclose(found.distance_px, distance / 45, rtol=1e-5)
    np.testing.assert_allclose(found.entropy_nats, entropy / 45, rtol=1e-5)
    np.testing.assert_allclose(found.agreement, agreement / 45, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.prefix_share, prefix / 45, rtol=1e-5)
    assert found.places == ("blocks.0.attn", "blocks.1.attn")
    assert found.num_images == 3
    assert found.deviation < 1e-5


def test_a_model_of_uniform_attention() -> None:
    """Without renormalising, what goes to the class token counts as distance 0; with it, it does not count."""
    model = small_vit(scale=0.0, image_size=(24, 24))
    plain, renormalised = (attention_statistics(model, [images(1, (24, 24))], renormalise=choice) for choice in (False, True))
    np.testing.assert_allclose(plain.distance_px, plain.uniform_distance_px * 36 / 37, rtol=1e-6)
    np.testing.assert_allclose(renormalised.distance_px, plain.uniform_distance_px, rtol=1e-6)
    assert renormalised.renormalised
    np.testing.assert_allclose(plain.entropy_nats, math.log(37), rtol=1e-6)
    np.testing.assert_allclose(plain.prefix_share, 1 / 37, rtol=1e-6)
    np.testing.assert_array_equal(plain.agreement, 0)


def test_equal_heads_agree_and_one_head_has_no_other() -> None:
    row = torch.rand(2, 1, 4, 9).softmax(dim=-1)
    torch.testing.assert_close(head_agreement(row.expand(2, 3, 4, 9)), torch.ones(2, 4))
    opposite = torch.cat([row, 2 / 9 - row], dim=1)
    torch.testing.assert_close(head_agreement(opposite), -torch.ones(2, 4))
    assert np.isnan(attention_statistics(small_vit(heads=1), [images(1)]).agreement).all()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_vit(class_token=False, pool="mean")
    whole = attention_statistics(model, [images(2)])
    monkeypatch.setattr(room, "CHUNK_ENTRIES", 2 * 3 * 15 * 4)  # four rows at a time, the last time three
    parts = attention_statistics(model, [images(2)])
    np.testing.assert_allclose(parts.distance_px, whole.distance_px, rtol=1e-6)
    np.testing.assert_allclose(parts.agreement, whole.agreement, rtol=1e-5)
    assert parts.prefix_share.shape == (2, 3, 0)


def test_no_images_and_several_sizes() -> None:
    with pytest.raises(DataError, match="no images"):
        attention_statistics(small_vit(), [])
    with pytest.raises(DataError, match="several sizes"):
        attention_statistics(small_vit(), [images(1), images(1, (16, 20))])
