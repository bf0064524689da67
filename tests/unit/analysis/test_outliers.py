"""Norms, thresholds and bimodality: known distributions and planted outliers."""

import numpy as np
import pytest
import torch

from kawara.analysis.outliers import bimodality, outlier_threshold, token_norms
from kawara.errors import DataError
from kawara.layers import taps


def test_bimodality_of_known_distributions():
    rng = np.random.default_rng(0)
    assert bimodality(np.array([-1.0, 1.0] * 50)) == pytest.approx(1.0)
    assert bimodality(np.arange(100_000) / 1e5) == pytest.approx(5 / 9, abs=1e-4)
    assert bimodality(rng.normal(size=200_000)) == pytest.approx(1 / 3, abs=0.01)
    assert np.isnan(bimodality(np.ones(5)))


def test_the_threshold_is_four_deviations_and_at_least_twice_the_median():
    rng = np.random.default_rng(0)
    wide = np.exp(rng.normal(3.0, 0.5, 200_000))
    assert np.log(outlier_threshold(wide)) == pytest.approx(3.0 + 4 * 0.5, abs=0.02)
    assert outlier_threshold(np.full(100, 7.0)) == pytest.approx(14.0)
    assert outlier_threshold(10 * wide) == pytest.approx(10 * outlier_threshold(wide))


def test_norms_are_those_of_the_patches(vit, batches):
    found = token_norms(vit, batches)
    assert found.places == ("blocks.0", "blocks.1", "blocks.2")
    with taps.read(vit.eval(), "blocks.*") as activations, torch.no_grad():
        vit.features(torch.cat(batches))
    for norms, place in zip(found.norms, found.places):
        tokens = activations[place].double().numpy()
        expected = [[np.sqrt((tokens[b, 1 + n] ** 2).sum()) for n in range(6)] for b in range(17)]
        np.testing.assert_allclose(norms.reshape(17, 6), expected, rtol=1e-5)


def test_planted_outliers_are_found_where_they_are(vit):
    torch.manual_seed(0)
    batches = [torch.randn(10, 3, 12, 8), torch.randn(10, 3, 12, 8)]

    def plant(output, inputs):
        output = output.clone()
        output[:4, 1 + 3] = 50 * output[:4, 1 + 3]  # row 1, column 1, in four of ten images
        return output

    with taps.replace(vit, {"blocks.1": plant}):
        found = token_norms(vit, batches, places=["blocks.0", "blocks.1"])
    assert found.shares.tolist() == pytest.approx([0.0, 8 / 120])
    expected = np.zeros((3, 2))
    expected[1, 1] = 0.4
    np.testing.assert_allclose(found.where(), expected)
    np.testing.assert_allclose(found.where(0), 0.0)
    assert found.bimodality[1] > 5 / 9 > found.bimodality[0]


def test_a_threshold_of_ones_own(cnn, batches):
    found = token_norms(cnn, batches, threshold=0.0)
    assert [norms.shape for norms in found.norms] == [(17, 12, 8), (17, 12, 8), (17, 6, 4), (17, 6, 4)]
    np.testing.assert_array_equal(found.thresholds, 0.0)
    np.testing.assert_allclose(found.shares, [(norms > 0).mean() for norms in found.norms])
    with pytest.raises(DataError):
        token_norms(cnn, [])
