"""Deletion, insertion and pointing on models whose answer is a known function of a few cells."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kawara.analysis.corruptions import gaussian_blur
from kawara.analysis.faithfulness import box_mask, faithfulness, pointing_game
from kawara.errors import ConfigError
from kawara.models import Features, ImageModel

GRID = (5, 6)
OBJECT = np.zeros(GRID, dtype=bool)
OBJECT[1:3, 2:5] = True  # 6 of 30 cells


class ObjectModel(ImageModel):
    """Logit of class 1: 4 · (sum of the means of the object's cells) − 12; of class 0: 0."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(channels=1, image_size=(20, 24), num_classes=2)

    def features(self, image: Tensor) -> Features:
        cells = nn.functional.avg_pool2d(image, 4).flatten(1)
        seen = 4 * cells[:, torch.from_numpy(OBJECT.ravel())].sum(dim=1) - 12
        return Features(cells[..., None], GRID, 0, torch.stack([torch.zeros_like(seen), seen], dim=1))

    def apply_heads(self, features: Features) -> tuple[Tensor, ...]:
        return (features.pooled,)

    def layer_index(self, parameter_name: str) -> int:
        raise NotImplementedError

    no_decay = reset_head = layer_index  # type: ignore[assignment]


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


WHITE = torch.ones(2, 1, 20, 24)
RIGHT_MAP = np.stack([OBJECT + 0.01 * np.random.default_rng(number).random(GRID) for number in range(2)])


def test_curves_of_a_right_and_of_a_wrong_map_are_known() -> None:
    found = faithfulness(ObjectModel(), WHITE, {"right": RIGHT_MAP, "wrong": -RIGHT_MAP}, steps=30)
    right, wrong = found["right"], found["wrong"]
    k = np.arange(31)
    there = np.minimum(k, 6)  # cells of the object among the first k
    np.testing.assert_allclose(right.shares, k / 30)
    np.testing.assert_allclose(right.insertion[0], sigmoid(4 * there - 12.0), rtol=1e-5)
    np.testing.assert_allclose(right.deletion[0], sigmoid(12.0 - 4 * there), rtol=1e-5)
    np.testing.assert_allclose(wrong.deletion[1], sigmoid(12.0 - 4 * np.maximum(k - 24, 0)), rtol=1e-5)
    curve = sigmoid(4 * there - 12.0)
    np.testing.assert_allclose(right.insertion_area, (curve.sum() - curve[0] / 2 - curve[-1] / 2) / 30, rtol=1e-5)
    np.testing.assert_allclose(right.score, right.insertion_area - right.deletion_area)
    assert right.faithful.all()
    assert not wrong.faithful.any()


def test_random_orders_are_those_of_cells_drawn_without_return() -> None:
    """The chance that c of 6 object cells are among k of 30 is hypergeometric."""
    from scipy.stats import hypergeom

    found = faithfulness(ObjectModel(), WHITE, {"right": RIGHT_MAP}, steps=30, num_random=100)["right"]
    counts = np.arange(7)
    expected = [(hypergeom.pmf(counts, 30, 6, k) * sigmoid(12.0 - 4 * counts)).sum() for k in range(31)]
    measured = found.random_deletion.mean(axis=(0, 1))
    np.testing.assert_allclose(measured, expected, atol=4 * 0.5 / np.sqrt(200))
    assert found.random_area.shape == (2, 100)
    assert found.random_area.mean() == pytest.approx(0.5, abs=0.03)  # the problem is the same upside down


def test_all_methods_meet_the_same_random_orders_and_a_seed_repeats_them() -> None:
    maps = {"right": RIGHT_MAP, "flat": np.zeros_like(RIGHT_MAP)}
    first, second = (faithfulness(ObjectModel(), WHITE, maps, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first["right"].random_deletion, first["flat"].random_deletion)
    np.testing.assert_array_equal(first["right"].random_deletion, second["right"].random_deletion)
    np.testing.assert_array_equal(first["flat"].deletion, second["flat"].deletion)
    other = faithfulness(ObjectModel(), WHITE, maps, seed=5)
    assert not np.array_equal(first["right"].random_deletion, other["right"].random_deletion)


def test_a_flat_map_does_not_gain_from_the_order_of_its_cells() -> None:
    """Row by row, the object in the upper half would be found early."""
    areas = [faithfulness(ObjectModel(), WHITE[:1], {"flat": np.zeros((1, *GRID))}, seed=seed)["flat"].deletion_area for seed in range(40)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.06)


def test_targets_portions_and_batches() -> None:
    image = WHITE * torch.tensor([1.0, 0.25])[:, None, None, None]  # logits 12 and −6: the second is called 0
    found = faithfulness(ObjectModel(), image, {"right": RIGHT_MAP}, steps=4, batch_size=3)["right"]
    np.testing.assert_allclose(found.shares, np.array([0, 8, 15, 22, 30]) / 30)
    np.testing.assert_allclose(found.deletion[:, 0], sigmoid(np.array([12.0, 6.0])), rtol=1e-5)
    asked = faithfulness(ObjectModel(), image, {"right": RIGHT_MAP}, torch.tensor([1, 1]), steps=4)["right"]
    np.testing.assert_allclose(asked.deletion[:, 0], sigmoid(np.array([12.0, -6.0])), rtol=1e-5)
    assert faithfulness(ObjectModel(), image, {"right": RIGHT_MAP}, steps=1000)["right"].shares.shape == (31,)


def test_blur_as_paint_leads_from_the_image_to_the_blurred_image() -> None:
    image = 0.5 + 0.1 * torch.randn(2, 1, 20, 24, generator=torch.Generator().manual_seed(0))
    found = faithfulness(ObjectModel(), image, {"right": RIGHT_MAP}, torch.tensor([1, 1]), paint="blur")["right"]
    blurred = gaussian_blur(image, 0.05 * 20)
    whole, spoiled = (ObjectModel()(picture).softmax(dim=1)[:, 1].numpy() for picture in (image, blurred))
    np.testing.assert_allclose(found.deletion[:, [0, -1]], np.stack([whole, spoiled], axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.insertion[:, [0, -1]], np.stack([spoiled, whole], axis=1), rtol=1e-5)
    assert np.abs(whole - spoiled).min() > 1e-3


def test_maps_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="do not fit the images"):
        faithfulness(ObjectModel(), WHITE, {"one": RIGHT_MAP[:1]})
    with pytest.raises(ConfigError, match="one another"):
        faithfulness(ObjectModel(), WHITE, {"one": RIGHT_MAP, "two": RIGHT_MAP[:, :3]})
    with pytest.raises(ConfigError, match="no maps"):
        faithfulness(ObjectModel(), WHITE, {})


def test_pointing_game() -> None:
    masks = np.repeat(np.repeat(OBJECT, 4, axis=0), 4, axis=1)[None].repeat(3, axis=0)
    maps = np.zeros((3, *GRID))
    maps[0, 2, 3] = 1  # on the object
    maps[1, 3, 3] = 1  # one cell below it
    maps[2, 1, 1:3] = 1  # two highest cells, one of them on it
    game = pointing_game(maps, masks)
    np.testing.assert_array_equal(game.hits, [1, 0, 0.5])
    np.testing.assert_allclose(game.chance, 6 / 30)
    generous = pointing_game(maps, masks, tolerance_px=3)
    np.testing.assert_array_equal(generous.hits, [1, 1, 1])
    np.testing.assert_allclose(generous.chance, 4 * 5 / 30)
    with pytest.raises(ConfigError, match="do not fit"):
        pointing_game(maps, masks[:2])


def test_a_map_that_knows_nothing_hits_as_often_as_the_area_says() -> None:
    masks = np.repeat(np.repeat(OBJECT, 4, axis=0), 4, axis=1)[None].repeat(2000, axis=0)
    game = pointing_game(np.random.default_rng(0).random((2000, *GRID)), masks)
    assert game.hits.mean() == pytest.approx(game.chance.mean(), abs=0.03)


def test_a_box_is_the_mask_of_its_pixels() -> None:
    mask = box_mask((2, 1, 5, 3), (6, 8))
    assert mask.sum() == 6
    assert mask[1:3, 2:5].all()
