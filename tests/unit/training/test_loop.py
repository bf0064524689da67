from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kawara.data.augment import Augmentation, AugmentConfig
from kawara.data.loading import EvalLoader, TrainLoader
from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import ImageSplit
from kawara.data.stores import TensorStore
from kawara.errors import ConfigError, DivergedError, OutOfMemoryError
from kawara.models import create_model
from kawara.tasks.classification import Classification, ClassificationConfig
from kawara.training.checkpoint import read_progress, save_checkpoint
from kawara.training.loop import Loop, seconds_per_image
from kawara.training.optimizer import OptimizerConfig
from kawara.training.progress import Reporter
from kawara.training.run_config import RunConfig
from kawara.training.run_folder import RunFolder
from kawara.training.schedule import ScheduleConfig

PREPROCESSING = Preprocessing(image_size=(8, 8), color="grey", crop_fraction=1.0, mean=(0.5,), std=(0.5,))


def make_loop(tmp_path, task=None, **settings) -> Loop:
    torch.manual_seed(0)
    settings = {"length": "12 steps", "batch_size": 16, "optimizer": OptimizerConfig(lr=1e-3)} | settings
    config = RunConfig(schedule=ScheduleConfig(kind="linear", warmup="0%"), **settings)
    images_u8 = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
    labels = (images_u8.float().mean(dim=(1, 2, 3)) > 127).long().numpy()
    split = ImageSplit("train", TensorStore(images_u8), labels, [f"image-{i}.png" for i in range(64)], np.zeros((64, 32), np.uint8))
    augmentation = Augmentation(AugmentConfig(crop="none", flip=0.0), PREPROCESSING, 0)
    folder = RunFolder(tmp_path / "run")
    folder.make()
    return Loop(
        create_model("vit_femto_4", num_classes=2, image_size=8, channels=1),
        task or Classification(ClassificationConfig(), 2, 0),
        TrainLoader(split, augmentation, batch_size=config.batch_size, seed=0, workers=1),
        lambda model: {"top1": 0.5, "nll": 1.0},
        config,
        folder,
        device=torch.device("cpu"),
        reporter=Reporter(quiet=True),
        keys=split.keys,
    )


def test_a_run_takes_its_steps_and_writes_what_happened(tmp_path):
    loop = make_loop(tmp_path)
    result = loop.fit()
    assert (result.steps, result.epochs, result.interrupted) == (12, 3.0, False)
    records = [json.loads(line) for line in loop.folder.journal.path.read_text().splitlines()]
    validations = [record["step"] for record in records if record["event"] == "validation"]
    assert validations == [2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert loop.folder.last.exists()
    assert loop.folder.best.exists()
    last = [record for record in records if record["event"] == "train"][-1]
    assert last["lr"] == pytest.approx(1e-3 / 12)


def test_a_best_file_from_beyond_the_last_checkpoint_counts_for_what_it_is(tmp_path):
    first = make_loop(tmp_path)
    first.fit()
    kept = read_progress(first.folder.last)
    assert (kept["best_step"], kept["best_score"]) == (12, 0.5)
    save_checkpoint(first.folder.best, first.model, [], None, {"step": 13, "top1": 0.9})  # and then the process died
    again = make_loop(tmp_path)
    again.resume()
    assert (again.progress.step, again.progress.best_step, again.progress.best_score) == (12, 13, 0.9)


def test_without_a_checkpoint_a_run_begins_anew(tmp_path):
    first = make_loop(tmp_path)
    first.fit()
    first.folder.last.unlink()
    again = make_loop(tmp_path)
    again.resume()
    assert again.progress.step == 0
    assert not again.folder.best.exists()
    assert again.folder.journal.read() == []


def test_accumulated_batches_are_one_step(tmp_path):
    torch.manual_seed(0)
    whole = make_loop(tmp_path / "a", batch_size=32, length="2 steps").fit()
    parts = make_loop(tmp_path / "b", batch_size=16, accumulate=2, length="2 steps").fit()
    assert parts.steps == 2
    for a, b in zip(whole.state.values(), parts.state.values()):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)
    with pytest.raises(ConfigError, match="accumulate=9"):
        make_loop(tmp_path / "c", accumulate=9)


class Greedy(Classification):
    """A task that runs out of memory with more than five images."""

    def loss(self, model, batch, step):
        if len(batch.labels) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(model, batch, step)


def test_out_of_memory_says_which_batch_would_fit(tmp_path):
    loop = make_loop(tmp_path, task=Greedy(ClassificationConfig(), 2, 0))
    with pytest.raises(OutOfMemoryError, match="4 would") as caught:
        loop.fit()
    assert "--set batch_size=4 --set accumulate=4" in str(caught.value)


class Exploding(Classification):
    def loss(self, model, batch, step):
        loss, right = super().loss(model, batch, step)
        return (loss * float("nan") if step == 5 else loss), right


def test_a_loss_that_is_not_finite_names_step_and_files_and_never_reaches_the_weights(tmp_path):
    loop = make_loop(tmp_path, task=Exploding(ClassificationConfig(), 2, 0))
    with pytest.raises(DivergedError, match=r"step 5.*\n.*image-\d+\.png"):
        loop.fit()
    assert all(bool(torch.isfinite(parameter).all()) for parameter in loop.model.parameters())


def test_the_average_is_what_is_kept(tmp_path):
    loop = make_loop(tmp_path, average_decay=0.9)
    result = loop.fit()
    assert loop.average is not None
    assert result.state is loop.average.state
    assert not torch.equal(result.state["blocks.0.attn.qkv.weight"], loop.model.state_dict()["blocks.0.attn.qkv.weight"])


def test_evaluation_time_is_measured_even_on_one_batch(tmp_path):
    loop = make_loop(tmp_path)
    split = loop.train.split
    for batch_size in (64, 16):
        assert seconds_per_image(loop.model, EvalLoader(split, PREPROCESSING, batch_size=batch_size, workers=1), None) > 0
