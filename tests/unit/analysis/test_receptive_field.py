"""Effective receptive fields of models whose gradient is known."""

import numpy as np
import pytest
import torch
from torch import nn

from kawara.analysis.places import depths
from kawara.analysis.receptive_field import branches, receptive_fields
from kawara.errors import DataError


def ones(kernel: int, channels_in: int = 1, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(channels_in, 1, kernel, stride, padding=(kernel - 1) // 2 if stride == 1 else 0, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def test_two_box_filters_make_a_triangle(mapped):
    model = mapped(nn.Sequential(ones(3), ones(3)), 1, channels=1)
    found = receptive_fields(model, [torch.randn(3, 1, 9, 11)], places=["layers.0", "layers.1"])
    box, triangle = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0.0]), np.array([0, 0, 1, 2, 3, 2, 1, 0, 0.0])
    for gradient, profile in zip(found.gradient, (box, triangle)):
        across = np.concatenate([[0], profile, [0]])
        np.testing.assert_allclose(gradient, np.outer(profile, across) / (profile.sum() * across.sum()), atol=1e-9)
    np.testing.assert_allclose(found.centre_px, [[4.5, 5.5]] * 2)
    np.testing.assert_allclose(found.share_within(1), [1.0, 49 / 81])
    offsets = [(np.hypot(i - 4, j - 5), weight) for (i, j), weight in np.ndenumerate(found.gradient[1])]
    assert found.mean_distance_px[1] == pytest.approx(sum(distance * weight for distance, weight in offsets))


def test_the_weights_of_a_patch_projection(mapped):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 1, 4, 4)
    model = mapped(nn.Sequential(layer), 1, channels=2)
    found = receptive_fields(model, [torch.randn(2, 2, 12, 8), torch.randn(1, 2, 12, 8)], places=["layers.0"])
    expected = np.zeros((12, 8))
    expected[4:8, 4:8] = layer.weight[0].abs().sum(dim=0).detach()
    np.testing.assert_allclose(found.gradient[0], expected / expected.sum(), atol=1e-7)
    np.testing.assert_allclose(found.centre_px, [[6.0, 6.0]])
    assert found.num_images == 3


def test_signs_average_over_channels_what_a_sum_would_cancel(mapped):
    layer = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight[0] = 1.0
        layer.weight[1] = -1.0
    model = mapped(nn.Sequential(layer), 2, channels=1)
    found = receptive_fields(model, [torch.randn(16, 1, 5, 5)], places=["layers.0"])
    expected = np.zeros((5, 5))
    expected[1:4, 1:4] = 1 / 9
    np.testing.assert_allclose(found.gradient[0], expected, atol=1e-7)


def test_a_vit_before_and_after_the_residual(vit, batches):
    assert branches(vit, depths(vit, 2)) == ["blocks.0.skip1:input1", "blocks.2.skip1:input1"]
    after = receptive_fields(vit, batches, places=["blocks.0", "blocks.2"])
    before = receptive_fields(vit, batches, places=branches(vit, ["blocks.0", "blocks.2"]))
    for found in (after, before):
        assert found.gradient.shape == (2, 12, 8)
        np.testing.assert_allclose(found.gradient.sum(axis=(1, 2)), 1.0)
    assert (after.share_within(2) > before.share_within(2)).all()
    embedded = receptive_fields(vit, batches, places=["blocks.0:input"])
    np.testing.assert_allclose(embedded.share_within(2), 1.0)
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_the_same_seed_gives_the_same_field(cnn, batches):
    first, again, other = (receptive_fields(cnn, batches, seed=seed).gradient for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    with pytest.raises(DataError):
        receptive_fields(cnn, [])
