from __future__ import annotations

import numpy as np
import pytest
import torch

from kawara.analysis.features import extract
from kawara.data.augment import Augmentation, AugmentConfig
from kawara.data.loading import EvalLoader, TrainLoader
from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import ImageSplit
from kawara.data.stores import TensorStore
from kawara.models import create_model
from kawara.tasks.classification import Classification, ClassificationConfig
from kawara.training.frozen import FeatureLoader, Heads
from kawara.training.loop import Loop
from kawara.training.optimizer import OptimizerConfig
from kawara.training.progress import Reporter
from kawara.training.run_config import RunConfig
from kawara.training.run_folder import RunFolder

PREPROCESSING = Preprocessing(image_size=(8, 8), color="grey", crop_fraction=1.0, mean=(0.5,), std=(0.5,))
CONFIG = RunConfig(length="30 steps", batch_size=16, optimizer=OptimizerConfig(lr=1e-2))


def backbone(**options):
    """A model with a head of its own and a frozen backbone, the same at every call."""
    torch.manual_seed(0)
    model = create_model("vit_femto_4", num_classes=3, image_size=8, channels=1, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.reset_head(3)
    model.freeze()
    return model


def split() -> ImageSplit:
    torch.manual_seed(1)
    images_u8 = torch.randint(0, 256, (70, 1, 8, 8), dtype=torch.uint8)
    labels = (images_u8.float().mean(dim=(1, 2, 3)) / 128).long().clamp(0, 2).numpy()
    return ImageSplit("train", TensorStore(images_u8), labels, [str(i) for i in range(70)], np.zeros((70, 32), np.uint8))


def train(model, loader, tmp_path):
    folder = RunFolder(tmp_path)
    folder.make()
    loop = Loop(
        model, Classification(ClassificationConfig(), 3, 0), loader, lambda candidate: {"top1": 0.5, "nll": 1.0}, CONFIG, folder,
        device=torch.device("cpu"), reporter=Reporter(quiet=True),
    )  # fmt: skip
    return loop.fit()


@pytest.mark.parametrize("options", [{}, {"pool": "class", "class_token": True, "distillation_token": True}], ids=["one head", "two heads"])
def test_a_head_trained_on_kept_features_equals_one_trained_on_images(tmp_path, options):
    images = split()
    whole = backbone(**options)
    plain = Augmentation(AugmentConfig(crop="none", flip=0.0), PREPROCESSING, 0)
    train(whole, TrainLoader(images, plain, batch_size=16, seed=0, workers=1), tmp_path / "images")

    kept = backbone(**options)
    features = extract(kept, EvalLoader(images, PREPROCESSING, batch_size=32, workers=1)).by_head
    result = train(Heads(kept), FeatureLoader(features, images.labels, batch_size=16), tmp_path / "features")

    assert whole.head.weight.abs().max() > 0.05  # it has learnt
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(kept.get_parameter(name), parameter, atol=2e-5, rtol=1e-4)
    assert len(result.state) == 2 * (1 + len(options) // 3)  # the checkpoint holds the heads alone


def test_features_are_served_in_order_and_shuffled_as_images_are():
    labels = np.arange(10, dtype=np.int64)
    loader = FeatureLoader(torch.arange(10.0).view(10, 1, 1), labels, batch_size=4, seed=3)
    assert [batch.labels.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    whole = list(loader.epoch(2))
    assert [len(batch.labels) for batch in whole] == [4, 4]
    assert all((batch.images.flatten() == batch.labels).all() for batch in whole)
    assert [batch.labels.tolist() for batch in loader.epoch(2, start=1)] == [whole[1].labels.tolist()]
    assert whole[0].labels.tolist() != next(loader.epoch(3)).labels.tolist()
