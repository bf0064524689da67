"""Tokens that copy their own patch are at home; tokens that copy another are where they were taken from."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kawara.analysis.localisation import Localisation, image_patches, localisation
from kawara.analysis.similarity import unbiased_cka
from kawara.errors import ConfigError, DataError


class Copy(nn.Module):
    """Give each cell of 4×4 px the pixels of the cell that lies `shift` further on."""

    def __init__(self, shift: int):
        super().__init__()
        self.shift = shift

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(image, 4).flatten(2).roll(-self.shift, dims=2).unflatten(2, (3, 2))


def test_tokens_are_found_where_they_come_from(mapped):
    torch.manual_seed(0)
    batches = [torch.randn(32, 3, 12, 8) for _ in range(2)]
    for shift in (0, 1):
        (found,) = localisation(mapped(nn.Sequential(Copy(shift)), 48), batches, layers=["layers.0"])
        assert found.tokens.shape == (3, 2, 3, 2)
        assert found.share_at_home == (1.0 if shift == 0 else 0.0)
        source = found.tokens.reshape(6, 6).argmax(axis=1)
        np.testing.assert_array_equal(source, (np.arange(6) + shift) % 6)
        np.testing.assert_allclose(found.tokens.reshape(6, 6)[np.arange(6), source], 1.0, atol=1e-6)
        assert np.abs(np.delete(found.tokens.reshape(6, 6)[0], source[0])).max() < 0.3


def test_every_pair_is_the_unbiased_cka_of_token_and_patch(vit, batches):
    (found,) = localisation(vit, batches[:1], layers=["blocks.1"])
    assert found.cka.shape == (7, 3, 2)
    tokens = []
    handle = vit.blocks[1].register_forward_hook(lambda module, inputs, output: tokens.append(output.detach()))
    vit.eval().features(batches[0])
    handle.remove()
    for token, row, column in ((0, 0, 0), (3, 2, 1), (6, 1, 0)):
        patch = batches[0][:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
        expected = unbiased_cka(tokens[0][:, token].double(), patch.double())
        assert found.cka[token, row, column] == pytest.approx(expected, abs=1e-5)


def test_layers_of_a_cnn_each_on_its_own_grid(cnn, batches):
    found = localisation(cnn, batches)
    assert [each.grid for each in found] == [(12, 8), (12, 8), (6, 4), (6, 4)]
    assert all(each.num_images == 15 for each in found)


def test_distances_in_loops():
    rng = np.random.default_rng(0)
    cka = rng.random((1 + 12, 3, 4))
    distances, means = Localisation(cka, 1, "layer", 10).by_distance()
    collected: dict[int, list[float]] = {}
    for i, j, p, q in np.ndindex(3, 4, 3, 4):
        collected.setdefault(round(np.hypot(i - p, j - q)), []).append(cka[1 + 4 * i + j, p, q])
    assert distances.tolist() == sorted(collected)
    np.testing.assert_allclose(means, [np.mean(collected[distance]) for distance in sorted(collected)])


def test_patches_in_loops():
    image = torch.randn(2, 3, 13, 9)
    patches = image_patches(image, (3, 2))
    for row in range(3):
        for column in range(2):
            expected = image[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
            assert torch.equal(patches[:, 2 * row + column], expected)


def test_what_has_no_grid_or_no_images_is_refused(vit, batches):
    with pytest.raises(ConfigError, match="not on the grid"):
        localisation(vit, batches, layers=["patch_embed"])
    with pytest.raises(DataError):
        localisation(vit, [])
    with pytest.raises(DataError, match="four images"):
        localisation(vit, batches[2:])
