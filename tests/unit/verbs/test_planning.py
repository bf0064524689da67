"""What is chosen for images that nobody chose anything for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kawara.training.progress import Reporter
from kawara.training.run_config import RunConfig
from kawara.verbs import planning
from kawara.verbs.contenders import resolved
from kawara.verbs.planning import TrainRequest
from kawara.verbs.training import resolve


def chosen(data: str, **options) -> RunConfig:
    return resolve(TrainRequest(data, **options), Reporter(quiet=True))


def summary(config: RunConfig) -> tuple[str, int, float, float]:
    return config.model.name, config.data.image_size, config.augment.rotation_degrees, config.augment.translation


def test_tiny_images_are_enlarged_and_turned():
    config = chosen("digits")
    assert summary(config) == ("vit_femto_conv_4", 16, 12.0, 0.03)
    assert (config.recipe, config.length, config.data.color, config.augment.flip) == ("small", "150 epochs", "grey", 0.0)
    assert summary(chosen("digits", settings={"augment.rotation_degrees": 0.0})) == ("vit_femto_conv_4", 16, 0.0, 0.03)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model": "vit_femto_conv_2"}, ("vit_femto_conv_2", 8, 0.0, 0.0)),
        ({"image_size": 8}, ("vit_femto_conv_2", 8, 0.0, 0.0)),
        ({"recipe": "deit", "model": "vit_femto_2", "image_size": 16}, ("vit_femto_2", 16, 0.0, 0.0)),
    ],
)
def test_what_was_asked_for_stays(options, expected):
    assert summary(chosen("digits", **options)) == expected


@pytest.mark.parametrize(("side", "model"), [(16, "vit_femto_conv_4"), (28, "vit_femto_conv_8"), (32, "vit_femto_conv_8")])
def test_larger_images_are_neither_enlarged_nor_turned(tmp_path, side, model):
    images = np.random.default_rng(0).integers(0, 256, (60, side, side), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x_train=images, y_train=np.arange(60) % 3)
    assert summary(chosen(str(tmp_path / "images.npz"))) == (model, side, 0.0, 0.0)


def test_what_is_chosen_for_a_comparison_is_not_chosen_otherwise_the_next_time():
    request = TrainRequest("digits")
    written, config = resolved(request, {})
    assert resolve(written, Reporter(quiet=True)) == config
    again, same = resolved(request, {"model": config.model.name, "image_size": config.data.image_size})
    assert (again, same) == (written, config)
    assert dataclasses.replace(written, model=None, recipe=None, length=None, image_size=None) == request


def test_on_a_busy_machine_a_length_in_minutes_takes_fewer_threads(monkeypatch, capsys):
    monkeypatch.setattr(planning, "num_threads_that_pay", lambda: 1)
    monkeypatch.setattr(planning.torch, "get_num_threads", lambda: 4)
    options = {"model": "vit_femto_8", "device": "cpu"}

    def threads_of(**more) -> tuple[int, str]:
        config = resolve(TrainRequest("digits", **options, **more), Reporter())
        return config.threads, capsys.readouterr().err

    count, said = threads_of(length="1 minutes")
    assert (count, "one thread is now faster than 4" in said) == (1, True)
    count, said = threads_of(length="1 epochs")
    assert (count, "--set threads=1" in said) == (0, True)
    count, said = threads_of(length="1 minutes", settings={"threads": 2})
    assert (count, "busy" in said) == (2, False)
