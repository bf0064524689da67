"""Accuracy under corruption of a model of which it is known what it looks at."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kawara.analysis.corruptions import CORRUPTIONS, Draw, corrupt
from kawara.analysis.robustness import denormalise, normalise, robustness
from kawara.data.loading import Batch
from kawara.data.preprocessing import Preprocessing
from kawara.errors import DataError, UnknownNameError
from kawara.models import Features, ImageModel

PREPROCESSING = Preprocessing(image_size=(28, 28))
TILE = (3, 9)


class OneTile(ImageModel):
    """Says 1 where one tile of 14×14 is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(channels=3, image_size=(28, 28), num_classes=2)
        self.switch = nn.Dropout(0.5)  # tells training from evaluation

    def features(self, image: Tensor) -> Features:
        tiles = nn.functional.avg_pool2d(denormalise(image, PREPROCESSING), 2).mean(dim=1)
        seen = self.switch(tiles[:, TILE[0], TILE[1]]) - 0.5
        return Features(tiles.flatten(1)[..., None], (14, 14), 0, torch.stack([-seen, seen], dim=1))

    def apply_heads(self, features: Features) -> tuple[Tensor, ...]:
        return (features.pooled,)

    def layer_index(self, parameter_name: str) -> int:
        raise NotImplementedError

    no_decay = reset_head = layer_index  # type: ignore[assignment]


def batches(number: int = 12, batch_size: int = 5) -> list[Batch]:
    """White images of class 1, black ones of class 0, in turn."""
    labels = torch.arange(number) % 2
    image = normalise(labels.float().reshape(-1, 1, 1, 1).expand(-1, 3, 28, 28), PREPROCESSING)
    parts = torch.arange(number).split(batch_size)
    return [Batch(image[part], labels[part], part) for part in parts]


def salience_of(image_01: Tensor) -> Tensor:
    maps = torch.zeros(len(image_01), 14, 14)
    maps[:, TILE[0], TILE[1]] = 1
    return maps


def test_dropping_the_tile_that_matters_costs_the_bright_images() -> None:
    model = OneTile().train()
    found = robustness(model, batches(), PREPROCESSING, ["drop_salient", "drop_non_salient"], salience=salience_of)
    salient, others = found["drop_salient"], found["drop_non_salient"]
    assert salient.strengths == tuple(number / 10 for number in range(10))
    assert salient.right.shape == (10, 1, 12)
    np.testing.assert_array_equal(salient.accuracy, [1] + 9 * [0.5])
    np.testing.assert_array_equal(others.accuracy, 1)
    np.testing.assert_array_equal(salient.right[1, 0], np.arange(12) % 2 == 0)
    assert np.isnan(salient.spread).all()
    assert model.training


def test_random_drops_hit_the_tile_as_often_as_their_share() -> None:
    found = robustness(OneTile(), batches(400, 64), PREPROCESSING, ["drop_random"])["drop_random"]
    assert found.right.shape == (10, 5, 400)
    expected = 1 - 0.5 * np.round(np.arange(10) / 10 * 196) / 196
    np.testing.assert_allclose(found.accuracy, expected, atol=4 * 0.25 / np.sqrt(2000))
    np.testing.assert_allclose(found.spread, found.right.mean(axis=2).std(axis=1, ddof=1))


def test_every_answer_is_that_to_the_spoiled_image_and_batches_do_not_matter() -> None:
    model = OneTile()
    found = robustness(model, batches(), PREPROCESSING, ["noise", "shift"], strengths={"noise": (0.0, 3.0)}, num_draws=3, seed=7)
    other = robustness(model, batches(12, 12), PREPROCESSING, ["noise", "shift"], strengths={"noise": (0.0, 3.0)}, num_draws=3, seed=7)
    model.eval()
    (batch,) = batches(12, 12)
    image_01 = denormalise(batch.images, PREPROCESSING)
    for name in ("noise", "shift"):
        np.testing.assert_array_equal(found[name].right, other[name].right)
        assert (found[name].unit, found[name].right.shape[1]) == (CORRUPTIONS[name].unit, 3)
        for level, strength in enumerate(found[name].strengths):
            for number in range(3):
                spoiled = corrupt(image_01, name, strength, Draw(batch.indices, number, 7))
                expected = model(normalise(spoiled, PREPROCESSING)).argmax(dim=1) == batch.labels
                np.testing.assert_array_equal(found[name].right[level, number], expected.numpy())
    assert 0 < found["noise"].accuracy[1] < 1


def test_black_is_black_before_normalisation() -> None:
    seen = []
    model = OneTile()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    robustness(model, batches()[:1], PREPROCESSING, ["drop_random"], strengths={"drop_random": (1.0,)}, num_draws=1)
    black = [-mean / std for mean, std in zip(PREPROCESSING.mean, PREPROCESSING.std)]
    torch.testing.assert_close(seen[0][0, :, 5, 5], torch.tensor(black))


def test_what_is_not_there() -> None:
    with pytest.raises(UnknownNameError, match="blur"):
        robustness(OneTile(), batches(), PREPROCESSING, ["blurr"])
    with pytest.raises(DataError, match="no images"):
        robustness(OneTile(), [], PREPROCESSING)
