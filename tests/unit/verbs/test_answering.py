"""Two sides answer the same images, whatever the order in which their parts hold them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import ImageSplit
from kawara.data.stores import TensorStore
from kawara.errors import DataError
from kawara.models import create_model
from kawara.predict import Predictor
from kawara.verbs import answering
from kawara.weights import ModelCard


def part(images: torch.Tensor, rows: list[int]) -> ImageSplit:
    labels = np.array([row % 3 for row in rows])
    digests = np.zeros((len(rows), 32), np.uint8)
    return ImageSplit("test", TensorStore(images[rows]), labels, [f"image-{row}" for row in rows], digests)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    model = create_model("vit_femto_conv_2", num_classes=3, image_size=8, channels=1)
    torch.nn.init.normal_(model.get_submodule("head").weight)  # type: ignore[arg-type]  a head of zeros answers everything alike
    preprocessing = Preprocessing((8, 8), "grey", crop_fraction=1.0, mean=(0.5,), std=(0.25,))
    return Predictor(model, ModelCard("vit_femto_conv_2", model.config, ("a", "b", "c"), preprocessing))


def test_the_same_model_answers_alike_from_parts_in_another_order(images, predictor):
    first, second = answering._common([part(images, list(range(40))), part(images, [*range(39, 9, -1), 3])])
    assert len(first.rows) == len(second.rows) == 31
    chosen = np.arange(0, 31, 2)
    answers = []
    for work in (first, second):
        probabilities, labels = answering._answers(predictor, work)
        right = probabilities.argmax(axis=1) == labels
        answers.append((right, labels, answering._spoiled(predictor, work, chosen, right)))
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    np.testing.assert_array_equal(answers[0][1], answers[1][1])
    assert 0 < answers[0][0].mean() < 1
    for name in answering.SPOILED:
        np.testing.assert_array_equal(answers[0][2][name], answers[1][2][name])
        assert answers[0][2][name].shape == (len(answering.strengths_of(name)), len(chosen))
        np.testing.assert_array_equal(answers[0][2][name][0], answers[0][0][chosen])


def test_parts_without_a_common_image_are_refused(images):
    with pytest.raises(DataError, match="held out of different images"):
        answering._common([part(images, [0, 1]), part(images, [2, 3])])
