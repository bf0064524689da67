"""Frequencies and variance against a Fourier transform in loops, and on maps whose spectrum is known."""

import numpy as np
import pytest
import torch
from torch import nn

from kawara.analysis.spectrum import delta_log_amplitude, log_amplitude, spectra, sub_blocks
from kawara.errors import DataError
from kawara.layers import taps


def slow_delta(maps: np.ndarray) -> np.ndarray:
    """Δ log amplitude of maps (B, D, h, h), frequency by frequency."""
    _, _, h, w = maps.shape
    y, x = np.mgrid[:h, :w]
    logs = []
    for k in range((h + 1) // 2):
        wave = np.exp(-2j * np.pi * k * (y / h + x / w))
        logs.append(np.log(np.abs((maps * wave).sum(axis=(2, 3))) + 1e-6).mean())
    return np.array(logs) - logs[0]


@pytest.mark.parametrize("size", [4, 7, 14])
def test_the_diagonal_is_the_fourier_transform(size):
    maps = torch.randn(3, 5, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = delta_log_amplitude(log_amplitude(maps).mean(dim=(0, 1)))
    np.testing.assert_allclose(found, slow_delta(maps.numpy()), atol=1e-9)


def test_one_wave_stands_out_at_its_frequency():
    y, x = torch.meshgrid(*[torch.arange(16, dtype=torch.float64)] * 2, indexing="ij")
    wave = 1 + torch.cos(2 * torch.pi * 3 * (y + x) / 16)
    found = delta_log_amplitude(log_amplitude(wave))
    assert found.argmax() == 0  # the mean itself
    assert found[3] == pytest.approx(np.log(0.5), abs=1e-6)
    np.testing.assert_allclose(np.delete(found, [0, 3]), np.log(1e-6 / 256), atol=1e-3)  # silence, as the paper's code counts it


def test_smoothing_lowers_high_frequencies():
    maps = torch.randn(8, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.avg_pool2d(nn.functional.pad(maps, (1, 1, 1, 1), mode="circular"), 3, 1)
    before, after = (delta_log_amplitude(log_amplitude(each).mean(dim=(0, 1))) for each in (maps, smooth))
    assert after[-1] < before[-1] - 1


def test_the_sub_blocks_of_both_families(vit, cnn):
    assert sub_blocks(vit)[:3] == [("blocks.0:input", "embedding"), ("blocks.0.skip1", "attention"), ("blocks.0.skip2", "mlp")]
    assert len(sub_blocks(vit)) == 7
    assert sub_blocks(cnn)[:2] == [("layers.0.blocks.0:input", "embedding"), ("layers.0.blocks.0", "block")]


@pytest.mark.parametrize("family", ["vit", "cnn"])
def test_a_model_over_unequal_batches(family, request):
    model = request.getfixturevalue(family).eval()
    torch.manual_seed(0)
    batches = [torch.randn(count, 3, 16, 16) for count in (5, 2)]
    found = spectra(model, batches)
    with taps.read(model, *found.places) as activations, torch.no_grad():
        model.features(torch.cat(batches))
    for index, place in enumerate(found.places):
        maps = activations[place]
        if maps.ndim == 3:
            maps = maps[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        maps = maps.double().numpy()
        np.testing.assert_allclose(found.log_amplitude[index], slow_delta(maps), atol=1e-4)
        assert found.variance[index] == pytest.approx(maps.var(axis=(2, 3), ddof=1).mean(), rel=1e-5)
        np.testing.assert_allclose(found.frequency[index], 2 * np.arange(len(found.log_amplitude[index])) / maps.shape[2])
        assert found.at_highest[index] == found.log_amplitude[index][-1]
    assert found.num_images == 7


def test_maps_that_are_not_square_and_no_images(vit):
    found = spectra(vit, [torch.randn(2, 3, 12, 24)])
    assert {len(amplitude) for amplitude in found.log_amplitude} == {2}
    np.testing.assert_allclose(found.frequency[0], [0, 1 / 3 + 1 / 6])
    with pytest.raises(DataError):
        spectra(vit, [])
