"""Attention and saliency of a real DeiT-Ti on real photos: verified, as far-reaching as the papers say, and true to the model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kawara.analysis.attention import attention_maps
from kawara.analysis.attention_statistics import attention_statistics
from kawara.analysis.attribution import saliency
from kawara.analysis.faithfulness import faithfulness
from kawara.data.decode import decode
from kawara.data.preprocessing import Preprocessing
from kawara.layers import taps
from kawara.models import ImageModel, ViTConfig, build

SHARED = Path(__file__).parents[2].parent / "shared"
WEIGHTS = SHARED / "weights" / "deit_tiny_patch16_224_in1k.safetensors"
PHOTOS = SHARED / "data" / "imagenet_samples"

pytestmark = pytest.mark.skipif(not (WEIGHTS.is_file() and PHOTOS.is_dir()), reason=f"weights and photos are not at {SHARED}")


@pytest.fixture(scope="module")
def model() -> ImageModel:
    model = build(ViTConfig()).eval()
    model.load_state_dict(load_file(WEIGHTS))
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    preprocessing = Preprocessing(crop_fraction=0.9)
    files = sorted(PHOTOS.glob("*.JPEG"))[::200]
    return preprocessing.normalise(torch.stack([preprocessing.place(decode(file.read_bytes(), file.name)) for file in files]))


def test_attention_distance_equals_float64_and_grows_with_depth(model: ImageModel, images: Tensor) -> None:
    found = attention_statistics(model, images.split(2))
    assert found.deviation < 1e-5
    assert found.uniform_distance_px == pytest.approx(116.49, abs=0.005)

    row, column = np.divmod(np.arange(196), 14)
    pixels = 16 * np.hypot(row[:, None] - row[None, :], column[:, None] - column[None, :])
    with torch.no_grad(), taps.read(model, "blocks.*.attn.qkv") as seen:
        model.features(images)
    expected = []
    for qkv in seen.values():
        query, key, _ = qkv.double().numpy().reshape(len(images), 197, 3, 3, 64).transpose(2, 0, 3, 1, 4)
        weights = np.exp(query @ key.swapaxes(-1, -2) / 8)
        weights /= weights.sum(axis=-1, keepdims=True)
        expected.append((weights[..., 1:, 1:] * pixels).sum(axis=-1).mean(axis=(0, 2)))
    np.testing.assert_allclose(found.distance_px, expected, rtol=1e-4)

    # Raghu et al., fig. 3: low blocks hold local and global heads, high ones global heads alone.
    assert found.distance_px[:4].min() < 30
    assert found.distance_px[:4].max() > 70
    assert found.distance_px[-2:].min() > 80
    assert found.entropy_nats.max() < math.log(197)


def test_maps_of_any_query_are_verified(model: ImageModel, images: Tensor) -> None:
    maps = attention_maps(model, images[:1], blocks=[0, 5, -1], queries=["class", (0, 13), "mean"])
    assert maps.weights.shape == (1, 3, 3, 3, 197)
    assert max(maps.deviation) < 1e-5
    np.testing.assert_allclose(maps.weights.sum(axis=-1), 1, atol=1e-5)


def test_gradient_maps_are_truer_to_the_model_than_random_orders(model: ImageModel, images: Tensor) -> None:
    images = images[:2]
    maps = {method: saliency(model, images, method).maps for method in ("gradient_rollout", "grad_cam", "random")}
    found = faithfulness(model, images, maps, steps=7, num_random=3)
    for method in ("gradient_rollout", "grad_cam"):
        assert found[method].score.mean() > 0.1 + found["random"].score.mean(), method
        assert found[method].beats_deletion.all(), method
