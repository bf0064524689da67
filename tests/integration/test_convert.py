"""`kawara convert` in and out, on small files."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from kawara.cli import main
from kawara.data.preprocessing import Preprocessing
from kawara.models import create_model
from kawara.weights import ModelCard, huggingface, load_model, save_model

SMALL = {"patch_size": 4, "width": 32, "depth": 3, "heads": 2, "mlp_hidden": 64, "class_token": True, "pool": "class"}


def made(**options):
    torch.manual_seed(0)
    model = create_model("vit_femto_4", **{"num_classes": 3, "image_size": (16, 16)} | SMALL | options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    card = ModelCard("vit_made", model.config, ("ant", "bee", "cow"), Preprocessing((16, 16), crop_fraction=0.8))
    return model, card


@pytest.fixture
def own(tmp_path):
    """A kawara model of class-token form, as a file."""
    model, card = made()
    save_model(tmp_path / "own.safetensors", model.state_dict(), card)
    return tmp_path / "own.safetensors", model


@pytest.fixture
def theirs(tmp_path):
    """The same as a folder of transformers without preprocessor_config.json, and with a pooler."""
    model, card = made()
    huggingface.write(tmp_path / "theirs", model, card)
    (tmp_path / "theirs" / "preprocessor_config.json").unlink()
    weights = tmp_path / "theirs" / "model.safetensors"
    tensors = safetensors.torch.load_file(weights) | {
        "vit.pooler.dense.weight": torch.zeros(32, 32),
        "vit.pooler.dense.bias": torch.zeros(32),
    }
    safetensors.torch.save_file(tensors, weights)
    return tmp_path / "theirs", model


def answers_alike(path, model) -> bool:
    loaded, _ = load_model(path)
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        return torch.equal(loaded(image), model(image))


def test_a_foreign_checkpoint_comes_in_with_every_tensor_accounted_for(theirs, tmp_path, capsys):
    folder, model = theirs
    out = tmp_path / "in.safetensors"
    assert main(["convert", str(folder), str(out)]) == 0
    said = capsys.readouterr().out
    assert "58 tensors: 56 used, 2 dropped" in said
    row = next(line for line in said.splitlines() if line.startswith("vit.encoder.layer.*.attention.attention.query.weight"))
    assert row.split()[1:4] == ["blocks.*.attn.qkv.weight", "3", "used"]
    row = next(line for line in said.splitlines() if line.startswith("vit.pooler.dense.*"))
    assert "2        dropped  the tanh layer" in row
    assert "note: There is no preprocessor_config.json" in said
    assert answers_alike(out, model)


def test_the_json_holds_the_full_list(theirs, tmp_path, capsys):
    folder, _ = theirs
    assert main(["convert", str(folder), str(tmp_path / "in.safetensors"), "--json", "--normalise", "imagenet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["to"]) == ("huggingface", "kawara")
    assert len(report["tensors"]) == 58
    assert report["counts"] == {"used": 56, "resized": 0, "dropped": 2, "missing": 0}
    assert report["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert report["class_names"] == ["ant", "bee", "cow"]
    assert report["files"] == [str(tmp_path / "in.safetensors")]


@pytest.mark.parametrize(("name", "to"), [("out", None), ("out", "huggingface"), ("out.safetensors", "timm")])
def test_a_kawara_model_leaves_and_comes_back(own, tmp_path, capsys, name, to):
    path, model = own
    assert main(["convert", str(path), str(tmp_path / name), *(["--to", to] if to else [])]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / name) in said
    assert f"{len(model.state_dict())} tensors: {len(model.state_dict())} used" in said
    back = tmp_path / "back.safetensors"
    assert main(["convert", str(tmp_path / name), str(back), *(["--heads", "2"] if to == "timm" else [])]) == 0
    assert answers_alike(back, model)
    assert load_model(back)[1].class_names == ("ant", "bee", "cow")


def test_what_differs_elsewhere_is_noted(own, tmp_path, capsys):
    assert main(["convert", str(own[0]), str(tmp_path / "out")]) == 0
    assert "note: At other image sizes than 16×16, transformers resizes the positions bicubic" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{own}", "{tmp}/theirs"], "exists already"),
        (["{own}", "{own}"], "exists already"),
        (["{tmp}/absent.safetensors", "{tmp}/out.safetensors"], "absent.safetensors"),
        (["{own}", "{tmp}/out.pth"], "does not write .pth"),
        (["{own}", "{tmp}/out", "--to", "kawara"], "out/model.safetensors"),
        (["{own}", "{tmp}/out.safetensors", "--to", "huggingface"], "is a folder"),
        (["{own}", "{tmp}/out.safetensors", "--heads", "2"], "leave out --heads"),
        (["{tmp}/theirs", "{tmp}/out.safetensors", "--heads", "4"], "--heads 4"),
        (["{tmp}/mean.safetensors", "{tmp}/out"], "no model with"),
        (["{own}", "{tmp}/no/such/place/out"], "cannot be written"),
        (["hub:nonsense", "{tmp}/out"], "hub:owner/name"),
    ],
)
def test_a_mistake_is_said_and_nothing_is_written(own, theirs, tmp_path, capsys, arguments, words):
    model, card = made(class_token=False, pool="mean")
    save_model(tmp_path / "mean.safetensors", model.state_dict(), card)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["convert", *(argument.format(own=own[0], tmp=tmp_path) for argument in arguments)]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_unknown_format_is_a_mistake_in_the_options(own, tmp_path, capsys):
    assert main(["convert", str(own[0]), str(tmp_path / "out"), "--to", "keras"]) == 2
    assert "huggingface" in capsys.readouterr().err
