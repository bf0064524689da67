"""The command line as a newcomer meets it, on a small folder of made-up pictures."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kawara
from kawara.cli import main

TRAIN = ["--model", "vit_femto_conv_8", "--recipe", "small", "--steps", "40", "--image-size", "32", "--set", "batch_size=32", "--seed", "0"]


def make_photos(folder: Path, per_class: int, seed: int) -> Path:
    """Write noisy pictures of three tints, a folder each: easy to learn in a few steps."""
    draw = np.random.default_rng(seed)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = draw.integers(0, 150, (40, 44, 3))
            pixels[..., channel] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "photos", per_class=40, seed=0)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    assert main(["train", str(photos), *TRAIN, "--out", str(out)]) == 0
    return out


def said(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def test_a_run_folder_holds_everything(run):
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "environment.json", "inputs.json", "journal.jsonl", "checkpoints/last.safetensors", "checkpoints/best.safetensors",
        "curves.png", "model.safetensors", "metrics.json", "report.html", "check.json", "quarantine.csv",
    }  # fmt: skip
    with Image.open(run / "curves.png") as picture:
        assert picture.width > 300
    assert (run / "report.html").stat().st_size > 5_000
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["top1"] > 0.8  # chance is a third


def test_train_prints_one_json_object(photos, tmp_path, capsys):
    result = said(capsys, "train", str(photos), *TRAIN, "--out", str(tmp_path / "run"))
    assert result["model"] == "vit_femto_conv_8"
    assert 0 <= result["top1"] <= 1
    assert result["seconds"] > 0
    assert result["images_per_second"] > 0
    assert result["steps"] == 40


def test_evaluate_counts_only_what_was_held_out(photos, run, capsys):
    result = said(capsys, "evaluate", str(run / "model.safetensors"), str(photos))
    trained = json.loads((run / "metrics.json").read_text())
    assert result["split"] == "test"
    assert result["num_images"] == trained["num_images"]
    assert result["top1"] == pytest.approx(trained["top1"])
    assert result["nll"] == pytest.approx(trained["nll"], rel=1e-4)
    for name in ("top1", "top5", "nll", "ece", "balanced_accuracy"):
        low, high = result[f"{name}_ci95"]
        assert low <= result[name] + 1e-9
        assert result[name] - 1e-9 <= high or name == "ece"
    assert result["skipped"] == 0
    assert np.array(result["confusion"]).sum() == result["num_images"]


def test_evaluate_takes_strangers_whole_and_refuses_unknown_classes(run, tmp_path, capsys):
    make_photos(tmp_path / "new", per_class=5, seed=77)
    assert said(capsys, "evaluate", str(run / "model.safetensors"), str(tmp_path / "new"))["num_images"] == 15
    (tmp_path / "new" / "zebra").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "new" / "zebra" / "z.png")
    assert main(["evaluate", str(run / "model.safetensors"), str(tmp_path / "new")]) == 2
    assert "zebra" in capsys.readouterr().err


def test_predict_answers_for_files_folders_globs_and_stdin(photos, run, capsys, monkeypatch, tmp_path):
    model = str(run / "model.safetensors")
    files = sorted(photos.rglob("*.*"))[:3]
    assert main(["predict", model, *map(str, files), "--json", "--top", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in rows] == list(map(str, files))
    for row in rows:
        assert set(row) >= {"path", "label", "score", "top"}
        assert row["label"] == row["top"][0]["label"]
        assert len(row["top"]) == 2
        assert 0 <= row["score"] <= 1
    class_folder = files[0].parent
    assert main(["predict", model, str(class_folder), "--csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(table) == len(list(class_folder.iterdir()))
    assert main(["predict", model, str(class_folder / "*")]) == 0
    assert str(files[0]) in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{file}\n" for file in files)))
    assert main(["predict", model, "-", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_predict_names_a_bad_file_and_answers_for_the_rest(photos, run, tmp_path, capsys):
    good = next(photos.rglob("*.*"))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    assert main(["predict", str(run / "model.safetensors"), str(bad), str(good), "--json"]) == 2
    captured = capsys.readouterr()
    assert [json.loads(line)["path"] for line in captured.out.splitlines()] == [str(good)]
    assert "bad.jpg" in captured.err


def test_the_model_file_needs_nothing_else(photos, run, tmp_path):
    alone = tmp_path / "elsewhere.safetensors"
    alone.write_bytes((run / "model.safetensors").read_bytes())
    predictor = kawara.load(alone)
    file = next(photos.rglob("*.*"))
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    answers = [predictor.predict(file)[0], predictor.predict(str(file))[0], predictor.predict(picture)[0]]
    answers += [predictor.predict(np.asarray(picture))[0], predictor.predict(file.read_bytes())[0]]
    assert {answer.label for answer in answers} == {answers[0].label}
    scores = [answer.score for answer in answers]
    assert max(scores) - min(scores) < 1e-5
    assert {guess.label for guess in answers[0].top} == set(predictor.class_names)
    assert [guess.score for guess in answers[0].top] == sorted((guess.score for guess in answers[0].top), reverse=True)
    assert len(predictor.predict([file, picture])) == 2
    logits = predictor.model(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 3)


def test_python_does_what_the_command_does(photos, run, tmp_path):
    result = kawara.train(
        photos, model="vit_femto_conv_8", recipe="small", steps=40, image_size=32, seed=0, settings={"batch_size": 32},
        out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    assert result.metrics["top1"] == json.loads((run / "metrics.json").read_text())["top1"]
    assert kawara.evaluate(result.model_path, photos).metrics["top1"] == result.metrics["top1"]


def test_models_and_recipes_are_listed_and_shown(capsys):
    names = [row["name"] for row in said(capsys, "models")["models"]]
    assert {"vit_tiny_16", "vit_small_16", "vit_base_16", "vit_large_16", "vit_huge_14"} <= set(names)
    shown = said(capsys, "models", "vit_tiny_16")
    assert shown["parameters"] == 5_717_416
    assert {row["name"] for row in said(capsys, "recipes")["recipes"]} == {"deit", "finetune", "head", "plain", "small"}
    assert said(capsys, "recipes", "deit")["config"]["optimizer"]["weight_decay"] == 0.05
    assert "torch" in said(capsys, "doctor")["packages"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "{photos}", "--model", "vit_tinny_16"], ["vit_tinny_16", "vit_tiny_16"]),
        (["train", "{photos}", "--recipe", "diet"], ["diet", "deit"]),
        (["train", "{photos}", "--set", "optimiser.lr=1"], ["optimiser", "optimizer"]),
        (["train", "{photos}", "--set", "optimizer.lr=fast"], ["optimizer.lr"]),
        (["train", "{photos}", "--model", "vit_tiny_16", "--image-size", "100"], ["96", "112"]),
        (["train", "{photos}", "--epochs", "1", "--steps", "2"], ["--epochs", "--steps"]),
        (["train", "{photos}", "--epoch", "1"], ["--epochs"]),
        (["train", "{photos}", "--epochs", "0"], ["positive"]),
        (["train", "{tmp}/nowhere"], ["nowhere"]),
        (["train", "{tmp}/empty"], ["empty"]),
        (["train", "{photos}", "--device", "cuda:7" if not torch.cuda.is_available() else "tpu"], ["cpu"]),
        (["train", "{photos}", "--out", "{run}"], ["exists"]),
        (["train", "{photos}", "--resume", "--out", "{photos}"], ["no run to resume"]),
        (["evaluate", "{tmp}/none.safetensors", "{photos}"], ["none.safetensors"]),
        (["evaluate", "{tmp}/broken.safetensors", "{photos}"], ["broken.safetensors"]),
        (["predict", "{run}/model.safetensors", "{tmp}/nothing/*.jpg"], ["nothing"]),
        (["train", "{photos}", "--set", "recipe=deit"], ["--recipe"]),
        (["train", "{photos}", "--set", "accumulate=500", "--steps", "3"], ["accumulate"]),
        (["train", "{photos}", "--recipe", "plain", "--model", "vit_femto_conv_8", "--epochs", "1"], ["warm-up", "schedule.warmup"]),
        (["train", "{photos}/red", "--steps", "3"], ["class folders"]),
        (["trian", "{photos}"], ["train"]),
        (["models", "vit_small_15"], ["vit_small_16"]),
    ],
)
def test_a_mistake_is_explained_and_exits_with_2(photos, run, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"PK\x03\x04 not a model")
    before = {path.name for path in tmp_path.iterdir()}
    filled = [argument.format(photos=photos, tmp=tmp_path, run=run) for argument in arguments]
    assert main(filled) == 2
    captured = capsys.readouterr()
    for word in words:
        assert word in captured.err
    assert "Traceback" not in captured.err
    assert {path.name for path in tmp_path.iterdir()} == before, "something was left on disk"


def test_help_teaches(capsys):
    for verb in ([], ["train"], ["evaluate"], ["predict"], ["convert"], ["models"], ["recipes"], ["demo"], ["doctor"]):
        assert main([*verb, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "kawara" in shown
        assert "%%" not in shown
    assert main([]) == 0
    assert main(["--version"]) == 0


def test_a_mistyped_option_is_json_too(photos, capsys):
    assert main(["train", str(photos), "--epoch", "1", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "UsageError"


def test_only_training_images_are_evaluated_on_what_was_held_out(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "data" / "train")
    trained = said(capsys, "train", str(tmp_path / "data"), *TRAIN, "--out", str(tmp_path / "run"))
    measured = said(capsys, "evaluate", trained["model_path"], str(tmp_path / "data"))
    assert (measured["split"], measured["num_images"]) == (trained["split"], trained["num_images"])
    (tmp_path / "data" / "train").rename(tmp_path / "data" / "val")
    assert main(["train", str(tmp_path / "data"), *TRAIN, "--out", str(tmp_path / "none")]) == 2
    assert "no training images" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_settings_reach_the_model_and_a_resumed_run_keeps_its_own(photos, tmp_path, capsys):
    arguments = ["train", str(photos), *TRAIN, "--out", str(tmp_path / "run")]
    assert main([*arguments, "--set", "model.options.registers=2", "--set", "model.options.stem_hidden=[8, 16, 64]"]) == 0
    config = kawara.load(tmp_path / "run" / "model.safetensors").model.config
    assert (config.registers, config.stem_hidden) == (2, (8, 16, 64))
    (tmp_path / "run" / "metrics.json").unlink()  # as if it had been killed at the very end
    capsys.readouterr()
    assert main([*arguments, "--resume", "--set", "optimizer.lr=0.5"]) == 2
    assert "optimizer.lr" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_files(photos, tmp_path, capsys):
    arguments = ["train", str(photos), *TRAIN, "--out", str(tmp_path / "run"), "--set", "optimizer.name=sgd", "--set", "optimizer.lr=1e12"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "step" in message
    assert ".png" in message or ".jpg" in message
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_full_disk_is_said_and_leaves_nothing_half_written(photos, tmp_path, capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kawara.training.checkpoint.safetensors.torch.save_file", full)
    assert main(["train", str(photos), *TRAIN, "--out", str(tmp_path / "run")]) == 2
    assert "No space" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_a_run_in_minutes_ends_on_time(photos, tmp_path, capsys):
    result = said(capsys, "train", str(photos), "--minutes", "0.4", "--out", str(tmp_path / "run"))
    assert result["seconds"] <= 0.4 * 60 * 1.1
    records = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    rates = [record["lr"] for record in records if record["event"] == "train"]
    assert rates[-1] < 0.25 * max(rates), "the learning rate was not annealed"
