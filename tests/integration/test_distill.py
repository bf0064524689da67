"""Learning from a teacher, through the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kawara.cli import main
from kawara.data.preprocessing import Preprocessing
from kawara.models import create_model
from kawara.weights import ModelCard, load_model, save_model


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir()
        for number in range(20):
            pixels = draw.integers(0, 150, (40, 44, 3))
            pixels[..., channel] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def write(path: Path, class_names: tuple[str, ...], **options) -> Path:
    torch.manual_seed(0)
    model = create_model("vit_femto_4", num_classes=len(class_names), image_size=24, **options)
    torch.nn.init.normal_(model.head.weight)
    save_model(path, model.state_dict(), ModelCard("vit_femto_4", model.config, class_names, Preprocessing((24, 24), crop_fraction=1.0)))
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("models") / "teacher.safetensors", ("green", "red", "blue"))


STUDENT = ["--model", "vit_femto_8", "--recipe", "small", "--steps", "6", "--image-size", "16", "--set", "batch_size=16"]


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_student_learns_from_a_teacher_of_another_size(kind, photos, teacher, tmp_path, capsys):
    arguments = ["train", str(photos), *STUDENT, "--teacher", str(teacher), "--distill", kind, "--out", str(tmp_path / "run"), "--json"]
    assert main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["agreement"]["who"] == ["labels", "teacher", "student"]
    alone, _ = trained_alone(photos, tmp_path)
    assert not torch.equal(load_model(tmp_path / "run" / "model.safetensors")[0].head.weight, alone.head.weight)


def trained_alone(photos, tmp_path):
    assert main(["train", str(photos), *STUDENT, "--out", str(tmp_path / "alone")]) == 0
    return load_model(tmp_path / "alone" / "model.safetensors")


def test_the_token_has_a_head_and_the_report_says_who_agrees(photos, teacher, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--set", "model.options={class_token: true, pool: class}"]
    assert main(["train", str(photos), *STUDENT, *options, "--teacher", str(teacher), "--distill", "token", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "distillation head" in text
    model, card = load_model(out / "model.safetensors")
    assert model.config.distillation_token
    assert card.metrics["agreement"]["who"] == ["labels", "teacher", "class head", "distillation head", "both heads"]
    assert main(["evaluate", str(out / "model.safetensors"), str(photos), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(card.metrics["top1"])


def test_a_pretrained_model_gets_a_distillation_token_while_it_is_finetuned(photos, teacher, tmp_path):
    pretrained = write(tmp_path / "pretrained.safetensors", tuple("abcd"), class_token=True, pool="class")
    out = tmp_path / "run"
    arguments = ["train", str(photos), "--pretrained", str(pretrained), "--teacher", str(teacher), "--distill", "token", "--steps", "3"]
    assert main([*arguments, "--out", str(out)]) == 0
    model, _ = load_model(out / "model.safetensors")
    assert model.config.distillation_token
    assert model.head_dist.weight.abs().max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--distill", "soft"], "go together"),
        (["--teacher", "OTHER"], "other classes"),
        (["--teacher", "absent.safetensors"], "absent.safetensors"),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(arguments, message, photos, teacher, tmp_path, capsys):
    other = write(tmp_path / "other.safetensors", ("green", "red", "violet"))
    places = {"TEACHER": str(teacher), "OTHER": str(other)}
    arguments = [places.get(argument, argument) for argument in arguments]
    code = main(["train", str(photos), *STUDENT, *arguments, "--out", str(tmp_path / "run")])
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
