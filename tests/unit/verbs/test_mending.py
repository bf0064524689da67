"""The command that mends a run is complete: parsed again, it is the request that was meant."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from kawara.cli import build_parser
from kawara.config import override, parse_assignments
from kawara.recipes import RECIPES
from kawara.verbs.mending import command, mended
from kawara.verbs.planning import TrainRequest

FOLDER = Path("nowhere/my run")


def parsed(line: str):
    words = shlex.split(line)
    assert words[0] == "kawara"
    options = build_parser().parse_args(words[1:])
    return options, parse_assignments(options.set)


def mend(request: TrainRequest, recipe: str, **settings):
    config = override(RECIPES[recipe](), dict(request.settings) | settings)
    return mended(request, config, folder=FOLDER, num_images=2_000, on_cpu=True)


def test_from_scratch_the_recipe_small_is_proposed_and_data_and_machine_stay():
    request = TrainRequest(
        "my photos/", model="vit_small_16", recipe="deit", length="300 epochs", image_size=64, out=str(FOLDER), seed=3,
        settings={"optimizer.lr": 0.1, "data.val_fraction": 0.2, "threads": 2},
    )  # fmt: skip
    options, settings = parsed(command(mend(request, "deit"), FOLDER))
    assert (options.data, options.recipe, options.model, options.minutes) == ("my photos/", "small", None, 5.0)
    assert (options.image_size, options.seed, options.out) == (64, 3, "nowhere/my run-1")
    assert settings == {"data.val_fraction": 0.2, "threads": 2}


def test_an_out_that_was_not_asked_for_is_left_to_be_chosen():
    options, _ = parsed(command(mend(TrainRequest("photos", recipe="deit", length="7 minutes"), "deit"), FOLDER))
    assert (options.out, options.minutes) == (None, 7.0)


def test_otherwise_only_the_rates_that_were_asked_for_are_taken_away():
    request = TrainRequest(
        "photos", model="vit_pico_8", length="20 epochs", settings={"optimizer.muon_lr": 5.0, "augment.crop_scale": [0.5, 1.0]}
    )
    options, settings = parsed(command(mend(request, "small"), FOLDER))
    assert (options.model, options.epochs, settings) == ("vit_pico_8", 20.0, {"augment.crop_scale": [0.5, 1.0]})


def test_where_no_rate_was_asked_for_a_tenth_is_proposed():
    request = TrainRequest("photos", pretrained="deit.safetensors")
    options, settings = parsed(command(mend(request, "finetune", **{"model.pretrained": "deit.safetensors"}), FOLDER))
    assert (options.pretrained, settings) == ("deit.safetensors", {"optimizer.lr": pytest.approx(1e-4)})


def test_a_rate_in_a_file_is_replaced_by_that_of_the_recipe(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("optimizer: {lr: 3.0, muon_lr: 1.0}")
    _, settings = parsed(command(mend(TrainRequest("photos", config=str(file)), "small"), FOLDER))
    assert settings == {"optimizer.lr": 3e-3, "optimizer.muon_lr": 0.02}
