"""From a pretrained model to one's own classes: fine-tuning, freezing, and what cannot go together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kawara
from kawara.cli import main
from kawara.data.preprocessing import Preprocessing
from kawara.models import create_model
from kawara.weights import ModelCard, load_model, save_model

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Noisy pictures of three tints, 20 a class."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir()
        for number in range(20):
            pixels = draw.integers(0, 150, (40, 44, 3))
            pixels[..., channel] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A model of 7 other classes with a preprocessing of its own."""
    torch.manual_seed(0)
    model = create_model("vit_femto_4", num_classes=7, image_size=16)
    path = tmp_path_factory.mktemp("models") / "pretrained.safetensors"
    preprocessing = Preprocessing((16, 16), crop_fraction=0.8, interpolation="bilinear", mean=MEAN, std=STD)
    save_model(path, model.state_dict(), ModelCard("vit_femto_4", model.config, tuple("abcdefg"), preprocessing))
    return path


def result(capsys, *arguments: object) -> dict:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_finetuning_takes_the_preprocessing_over_and_gives_the_model_a_new_head(photos, pretrained, tmp_path, capsys):
    out = tmp_path / "run"
    said = result(capsys, "train", photos, "--pretrained", pretrained, "--epochs", 1, "--out", out, "--set", "batch_size=8")
    assert (said["recipe"], said["model"]) == ("finetune", "vit_femto_4")
    model, card = load_model(out / "model.safetensors")
    assert card.class_names == ("blue", "green", "red")
    taken = card.preprocessing
    assert (taken.mean, taken.std, taken.crop_fraction, taken.interpolation, taken.image_size) == (MEAN, STD, 0.8, "bilinear", (16, 16))
    before, _ = load_model(pretrained)
    moved = [(model.get_parameter(name) - before.get_parameter(name)).abs().max() for name in ("blocks.0.mlp.fc1.weight", "norm.weight")]
    assert all(0 < distance < 0.05 for distance in moved)  # it went on from there


def test_layers_near_the_input_learn_more_slowly(photos, pretrained, tmp_path, capsys):
    result(
        capsys, "train", photos, "--pretrained", pretrained, "--steps", 3, "--out", tmp_path / "run", "--set", "optimizer.layer_decay=0.1"
    )
    before, after = load_model(pretrained)[0], load_model(tmp_path / "run" / "model.safetensors")[0]
    moved = [
        (after.get_parameter(name) - before.get_parameter(name)).abs().mean()
        for name in ("blocks.0.mlp.fc1.weight", "blocks.2.mlp.fc1.weight")
    ]
    assert moved[0] < 0.1 * moved[1]


def test_a_larger_image_keeps_the_patch_and_resizes_the_positions(photos, pretrained, tmp_path, capsys):
    out = tmp_path / "run"
    result(capsys, "train", photos, "--pretrained", pretrained, "--image-size", 24, "--steps", 2, "--out", out)
    model, card = load_model(out / "model.safetensors")
    assert (model.config.patch_size, model.config.image_size, card.preprocessing.image_size) == (4, (24, 24), (24, 24))
    assert model.pos_embed.shape[1] == 36


def test_a_frozen_backbone_stays_bit_for_bit(photos, pretrained, tmp_path, capsys):
    out = tmp_path / "run"
    said = result(capsys, "train", photos, "--pretrained", pretrained, "--freeze", "backbone", "--out", out)
    assert said["recipe"] == "head"
    before, after = load_model(pretrained)[0], load_model(out / "model.safetensors")[0]
    for name, parameter in before.named_parameters():
        if not name.startswith("head"):
            assert torch.equal(parameter, after.get_parameter(name)), name
    assert after.head.weight.abs().max() > 0
    evaluated = result(capsys, "evaluate", out / "model.safetensors", photos)
    assert evaluated["top1"] == pytest.approx(said["top1"])  # the model file answers as the features did
    assert evaluated["nll"] == pytest.approx(said["nll"], rel=1e-4)


def test_frozen_blocks_stay_and_the_others_learn(photos, pretrained, tmp_path, capsys):
    out = tmp_path / "run"
    result(capsys, "train", photos, "--pretrained", pretrained, "--freeze", "2", "--steps", 3, "--out", out)
    before, after = load_model(pretrained)[0], load_model(out / "model.safetensors")[0]
    same = {name for name, parameter in before.named_parameters() if torch.equal(parameter, after.get_parameter(name))} - {"head.bias"}
    assert {name for name in same if before.layer_index(name) > 2} == set()
    assert "blocks.1.mlp.fc2.weight" in same
    assert "pos_embed" in same


def test_an_interrupted_head_goes_on(photos, pretrained, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ("train", photos, "--pretrained", pretrained, "--freeze", "backbone", "--set", "batch_size=16")
    result(capsys, *arguments, "--out", whole)
    with pytest.MonkeyPatch.context() as patch:
        from kawara.training.loop import Loop

        step = Loop._step

        def stop_after_ten(self, *args):
            step(self, *args)
            self._stop_requested = self.progress.step == 10

        patch.setattr(Loop, "_step", stop_after_ten)
        assert main([*map(str, arguments), "--out", str(parts)]) == 130
    result(capsys, *arguments, "--out", parts, "--resume")
    first, second = load_model(whole / "model.safetensors")[0], load_model(parts / "model.safetensors")[0]
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


def test_the_python_function_does_the_same(photos, pretrained, tmp_path):
    trained = kawara.train(photos, pretrained=pretrained, freeze=1, steps=2, out=tmp_path / "run", quiet=True)
    assert trained.recipe == "finetune"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--freeze", "backbone"], "Only what was trained before can be frozen"),
        (["--recipe", "finetune"], "begins with a pretrained model"),
        (["--pretrained", "PRETRAINED", "--freeze", "9"], "1 to 3 blocks"),
        (["--pretrained", "PRETRAINED", "--freeze", "head"], "none, backbone, or a number of blocks"),
        (["--pretrained", "PRETRAINED", "--image-size", "18"], "16 px instead of 18 px or 20 px"),
        (["--pretrained", "PRETRAINED", "--model", "vit_pico_4"], "has its architecture"),
        (["--pretrained", "PRETRAINED", "--freeze", "backbone", "--recipe", "deit"], "would have no effect"),
        (["--pretrained", "PRETRAINED", "--freeze", "backbone", "--set", "augment.flip=0.5"], "would have no effect"),
        (["--pretrained", "PRETRAINED", "--set", "model.options={registers: 2}"], "model.options"),
        (["--pretrained", "absent.safetensors"], "absent.safetensors"),
    ],
)
def test_what_does_not_go_together_is_said_and_nothing_is_written(arguments, message, photos, pretrained, tmp_path, capsys):
    arguments = [str(pretrained) if argument == "PRETRAINED" else argument for argument in arguments]
    assert message in refused(capsys, "train", photos, *arguments, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_classes_than_images_is_a_mistake(pretrained, tmp_path, capsys):
    for number in range(6):
        for part in ("train", "val"):
            (tmp_path / "data" / part / f"class-{number}").mkdir(parents=True)
        Image.new("RGB", (20, 20), (number * 40, 0, 0)).save(tmp_path / "data" / "val" / f"class-{number}" / "a.png")
    for number in range(5):
        Image.new("RGB", (20, 20), (0, number * 40, 0)).save(tmp_path / "data" / "train" / f"class-{number}" / "b.png")
    message = refused(capsys, "train", tmp_path / "data", "--pretrained", pretrained, "--out", tmp_path / "run")
    assert "class" in message
    assert not (tmp_path / "run").exists()
