"""Principal components of the patch embedding against the covariance; kernels as they are."""

import numpy as np
import pytest
import torch
from torch import nn

from kawara.analysis.filters import first_filters, principal_filters
from kawara.errors import ConfigError
from kawara.models import create_model


def test_components_are_eigenvectors_of_the_covariance_of_the_filters():
    weight = torch.randn(20, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    tiles, explained = principal_filters(weight, 6)
    rows = np.array([[weight[d, c, y, x] for y in range(3) for x in range(3) for c in range(2)] for d in range(20)], dtype=np.float64)
    covariance = np.cov(rows, rowvar=False)
    values = np.sort(np.linalg.eigvalsh(covariance))[::-1]
    np.testing.assert_allclose(explained, values[:6] / values.sum(), rtol=1e-9)
    for tile, value in zip(tiles.reshape(6, -1), values):
        np.testing.assert_allclose(covariance @ tile, value * tile, atol=1e-9)
        assert np.linalg.norm(tile) == pytest.approx(1.0)


def test_the_sign_is_fixed_and_a_common_offset_does_not_count():
    weight = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tiles, _ = principal_filters(weight, 5)
    for changed in (-weight, weight + torch.randn(1, 3, 4, 4, dtype=torch.float64), 5 * weight, weight.flip(0)):
        np.testing.assert_allclose(principal_filters(changed, 5)[0], tiles, atol=1e-9)
    flat = tiles.reshape(5, -1)
    assert (flat[np.arange(5), np.abs(flat).argmax(axis=1)] > 0).all()


def test_planted_components_come_back_in_order():
    first, second = torch.linalg.qr(torch.randn(27, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0].T
    amounts = torch.linspace(-1, 1, 11, dtype=torch.float64)
    filters = torch.cat([3 * amounts[:, None] * first, amounts[:, None] * second]).unflatten(1, (3, 3, 3))  # (D, P, P, C)
    tiles, explained = principal_filters(filters.permute(0, 3, 1, 2))
    assert abs(tiles[0].ravel() @ first.numpy()) == pytest.approx(1.0)
    assert abs(tiles[1].ravel() @ second.numpy()) == pytest.approx(1.0)
    np.testing.assert_allclose(explained[:2], [0.9, 0.1])


def test_first_layers_of_every_kind(vit, cnn, mapped):
    found = first_filters(vit)
    assert (found.kind, found.place, found.num_filters, found.tiles.shape) == ("components", "patch_embed.proj", 16, (15, 4, 4, 3))
    stem = create_model("vit_femto_conv_4", num_classes=2, channels=1)
    found = first_filters(stem)
    assert (found.kind, found.explained, found.tiles.shape[1:]) == ("kernels", None, (3, 3, 1))
    found = first_filters(cnn)
    kernel = cnn.layers[0].blocks[0].conv1.weight.detach()
    assert found.place == "layers.0.blocks.0.conv1"
    assert found.tiles[4, 2, 1, 0] == pytest.approx(float(kernel[4, 0, 2, 1]))
    with pytest.raises(ConfigError, match="filters the pixels"):
        first_filters(mapped(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), 4))
