from __future__ import annotations

import inspect

import pytest
import torch

from kawara.config import from_dict, to_dict
from kawara.data.survey import Survey
from kawara.models import model_names
from kawara.recipes import RECIPES, choice, deit, plain
from kawara.training.run_config import RunConfig
from kawara.training.schedule import Duration

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def found(num_images: int, side: int, num_classes: int = 10) -> Survey:
    return Survey(num_images, num_classes, side, (side, side), is_grey=False)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_is_complete_documented_and_survives_json(name):
    config = RECIPES[name]()
    assert config.recipe == name
    assert config.model.name in model_names()
    assert from_dict(RunConfig, to_dict(config)) == config
    text = inspect.getdoc(RECIPES[name]) or ""
    for part in ("Source:", "Command:", "Cost:", "Expect:"):
        assert part in text


def test_deit_is_as_written():
    config = deit()
    assert (config.batch_size, config.length, config.schedule.warmup) == (1024, "300 epochs", "5 epochs")
    assert config.optimizer.lr * config.batch_size / config.optimizer.lr_batch == pytest.approx(1e-3)
    assert config.schedule.final * 1e-3 == pytest.approx(1e-5)
    assert config.optimizer.clip_norm is None
    assert (config.model.dropout, config.model.stochastic_depth) == (0.0, 0.1)
    assert config.task.label_smoothing == 0.1
    assert (config.task.mix.mixup, config.task.mix.cutmix, config.task.mix.switch_probability) == (0.8, 1.0, 0.5)
    assert (config.augment.rand_augment, config.augment.erasing, config.sampler.repeats) == ("m9-mstd0.5-inc1", 0.25, 3)
    assert config.average_decay == 0.99996


def test_plain_is_as_written():
    config = plain()
    assert (config.batch_size, config.length, config.schedule.warmup) == (1024, "90 epochs", "10000 steps")
    assert config.optimizer.lr * config.optimizer.weight_decay == pytest.approx(1e-4)
    assert config.model.options == {"pool": "mean", "class_token": False, "position": "sincos"}


@pytest.mark.parametrize(
    ("side", "device", "expected"), [(28, CPU, 28), (30, CPU, 32), (8, CPU, 8), (3, CPU, 8), (400, CPU, 128), (400, GPU, 224)]
)
def test_image_size_follows_the_images_and_the_device(side, device, expected):
    size, why = choice.image_size(found(1000, side), device)
    assert size == expected
    assert str(size) in why


@pytest.mark.parametrize(("side", "expected"), [(3, 16), (8, 16), (15, 16), (16, 16), (17, 20), (28, 28), (400, 128)])
def test_only_tiny_images_are_enlarged(side, expected):
    assert choice.image_size(found(1000, side), CPU, enlarge=True)[0] == expected
    assert bool(choice.jitter(found(1000, side), expected)) == (side < 16)
    assert choice.jitter(found(1000, 8), 8) == {}


@pytest.mark.parametrize(("image_size", "tokens"), [(8, 16), (12, 36), (16, 16), (20, 25), (24, 36), (28, 16), (96, 144), (128, 64)])
def test_the_stride_leaves_16_tokens_or_more(image_size, tokens):
    name, _ = choice.model(found(1000, image_size), image_size, Duration(1, "epochs"), CPU, 128)
    stride = int(name.rpartition("_")[2])
    assert (-(-image_size // stride)) ** 2 == tokens


def test_longer_training_takes_a_larger_model():
    names = [choice.model(found(60_000, 32), 32, Duration(epochs, "epochs"), CPU, 128)[0] for epochs in (1, 10, 50, 100, 200)]
    assert names == [f"vit_{size}_conv_8" for size in ("femto", "pico", "nano", "micro", "milli")]


def test_minutes_are_turned_into_showings_by_measuring(monkeypatch):
    monkeypatch.setattr(choice, "_seconds_per_image", lambda *arguments: 1e-3)  # a thousand images a second
    short, _ = choice.model(found(60_000, 32), 32, Duration(1, "minutes"), CPU, 128)
    longer, why = choice.model(found(60_000, 32), 32, Duration(10, "minutes"), CPU, 128)
    assert (short, longer) == ("vit_femto_conv_8", "vit_pico_conv_8")
    assert "10 times" in why


@pytest.mark.parametrize("side", [8, 20, 28, 32, 64, 96, 128, 500])
def test_every_choice_is_a_model_that_exists(side):
    size, _ = choice.image_size(found(5000, side), CPU)
    for epochs in (1, 100, 10_000):
        assert choice.model(found(5000, side), size, Duration(epochs, "epochs"), CPU, 128)[0] in model_names()


def test_length_and_held_out_share():
    assert choice.length(found(60_000, 32), CPU) == "20 epochs"
    assert choice.length(found(1_797, 8), CPU) == "150 epochs"
    assert choice.val_fraction(found(60_000, 32)) == pytest.approx(2500 / 60_000, abs=1e-4)
    assert choice.val_fraction(found(200, 32)) == 0.15
    assert choice.val_fraction(found(100_000, 32, num_classes=1000)) == 0.15


def test_few_images_are_shown_more_often_when_finetuning():
    lengths = {n: Duration.parse(choice.finetuning_length(found(n, 224), CPU)).amount for n in (200, 4_000, 100_000)}
    assert lengths == {200: 8, 4_000: 5, 100_000: 4}
    assert Duration.parse(choice.finetuning_length(found(30_000, 224), GPU)).amount == 7
