"""Orders that an epoch shows: complete, seeded, repeated as in DeiT, balanced to within one image."""

from __future__ import annotations

import numpy as np
import pytest

from kawara.data.randomness import permutation
from kawara.data.sampling import SamplerConfig, epoch_order, epoch_size
from kawara.errors import ConfigError

LABELS = np.array([0] * 700 + [1] * 200 + [2] * 100)


def test_plain_epochs_show_each_image_once():
    indices, draws = epoch_order(1000, None, 3, 7, SamplerConfig())
    np.testing.assert_array_equal(np.sort(indices), np.arange(1000))
    np.testing.assert_array_equal(draws, indices)
    np.testing.assert_array_equal(indices, permutation(7, 3, 1000))


@pytest.mark.parametrize("config", [SamplerConfig(), SamplerConfig(repeats=3), SamplerConfig(balanced=True), SamplerConfig(2, True)])
def test_orders_depend_on_seed_and_epoch_only(config):
    first = epoch_order(1000, LABELS, 1, 5, config)
    for again, other in zip(epoch_order(1000, LABELS, 1, 5, config), first):
        np.testing.assert_array_equal(again, other)
    for seed, epoch in ((5, 2), (6, 1)):
        assert (epoch_order(1000, LABELS, epoch, seed, config)[0] != first[0]).any()
    assert len(first[0]) == len(first[1]) == epoch_size(1000, config)


@pytest.mark.parametrize("num_items", [256, 300, 1000, 50_000])
def test_repeated_augmentation_is_the_sampler_of_deit_on_one_process(num_items):
    """FACTS 3.5, written down again: permute, repeat each index three times, keep the first floor(n // 256 · 256)."""
    indices, draws = epoch_order(num_items, None, 2, 0, SamplerConfig(repeats=3))
    shuffled = permutation(0, 2, num_items).tolist()
    repeated = [index for index in shuffled for _ in range(3)]
    assert indices.tolist() == repeated[: num_items // 256 * 256]
    assert abs(len(set(indices.tolist())) - len(indices) / 3) < 1
    assert len(set(draws.tolist())) == len(draws), "each showing has a draw of its own"
    np.testing.assert_array_equal(draws % num_items, indices)
    np.testing.assert_array_equal(draws // num_items, np.arange(len(draws)) % 3)


def test_repeated_augmentation_of_a_small_set_keeps_its_length():
    indices, _ = epoch_order(100, None, 0, 0, SamplerConfig(repeats=3))
    assert len(indices) == 100
    assert len(set(indices.tolist())) == 34


@pytest.mark.parametrize("epoch", range(3))
def test_balanced_epochs_show_each_class_equally_often(epoch):
    indices, draws = epoch_order(1000, LABELS, epoch, 0, SamplerConfig(balanced=True))
    assert sorted(np.bincount(LABELS[indices]).tolist()) == [333, 333, 334]
    assert len(set(draws.tolist())) == 1000
    np.testing.assert_array_equal(draws % 1000, indices)
    for label in range(3):
        members = np.flatnonzero(label == LABELS)
        showings = np.bincount(indices, minlength=1000)[members]
        assert showings.max() - showings.min() <= 1
    assert (draws // 1000).max() == 3
    halves = [np.bincount(LABELS[part], minlength=3) for part in (indices[:500], indices[500:])]
    assert abs(halves[0] - halves[1]).max() < 80, "classes are mixed over the epoch"


def test_balanced_and_repeated():
    indices, draws = epoch_order(1000, LABELS, 0, 0, SamplerConfig(repeats=2, balanced=True))
    assert len(indices) == 768
    assert len(set(draws.tolist())) == 768
    np.testing.assert_array_equal(indices[0::2], indices[1::2])


def test_wrong_settings():
    with pytest.raises(ConfigError, match="repeats"):
        SamplerConfig(repeats=0)
    with pytest.raises(ConfigError, match="label"):
        epoch_order(10, None, 0, 0, SamplerConfig(balanced=True))
