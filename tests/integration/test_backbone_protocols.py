"""`kawara evaluate --protocol fewshot|knn` on real digits and small folders, with models that have a head and models that have none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import kawara
from kawara.analysis.features import extract
from kawara.cli import main
from kawara.data.loading import EvalLoader
from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import load_data
from kawara.errors import ConfigError, UnknownNameError
from kawara.models import create_model
from kawara.weights import ModelCard, save_model

GREY = Preprocessing((8, 8), "grey", crop_fraction=1.0, mean=(0.5,), std=(0.5,))
COLOR = Preprocessing((16, 16), crop_fraction=1.0)


def write_model(path: Path, preprocessing: Preprocessing, class_names: tuple[str, ...] = (), **options) -> str:
    torch.manual_seed(0)
    model = create_model(
        "vit_femto_4", num_classes=len(class_names), image_size=preprocessing.image_size, channels=preprocessing.channels, **options
    )
    save_model(path, model.state_dict(), ModelCard("vit_femto_4", model.config, class_names, preprocessing))
    return str(path)


@pytest.fixture(scope="module")
def headless(tmp_path_factory) -> str:
    return write_model(tmp_path_factory.mktemp("models") / "headless.safetensors", GREY)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> str:
    """A classifier of other classes than those of any data here."""
    return write_model(tmp_path_factory.mktemp("models") / "stranger.safetensors", COLOR, ("tench", "church"), distillation_token=True)


def make_folder(folder: Path, counts: dict[str, dict[str, int]]) -> Path:
    """Write pictures of a colour for each class: {part: {class: images}}; the part "" is no part."""
    draw = np.random.default_rng(0)
    for part, classes in counts.items():
        for channel, (name, count) in enumerate(classes.items()):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 120, (20, 24, 3))
                pixels[..., channel] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Parts of the source's own; class b has 7 train images."""
    return make_folder(
        tmp_path_factory.mktemp("photos"), {"train": {"r": 12, "g": 7, "b": 12}, "val": {"r": 2, "g": 2}, "test": {"r": 4, "g": 5, "b": 6}}
    )


def said(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def test_knn_of_a_backbone_without_head_equals_scikit_learn(headless, capsys):
    result = said(capsys, "evaluate", headless, "digits", "--protocol", "knn")
    assert set(result) == {
        "protocol", "num_images", "num_support", "num_classes", "neighbours", "temperature", "top1", "top1_ci95", "results", "split",
        "skipped", "skipped_files", "class_names",
    }  # fmt: skip
    images = load_data("digits", GREY, seed=0, val_fraction=0.1)  # no parts of its own: split as for training
    assert (result["protocol"], result["split"], result["skipped"]) == ("knn", "test", 0)
    assert (result["num_support"], result["num_images"]) == (len(images.splits["train"]), len(images.splits["test"]))
    assert result["num_classes"] == len(result["class_names"]) == 10
    assert [row["neighbours"] for row in result["results"]] == [10, 20, 100, 200]
    model = kawara.load(headless).model
    known, asked = (extract(model, EvalLoader(images.splits[name], GREY, batch_size=256)) for name in ("train", "test"))
    for row in result["results"]:
        voters = KNeighborsClassifier(row["neighbours"], metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        expected = voters.fit(known.pooled.numpy(), known.labels.numpy()).score(asked.pooled.numpy(), asked.labels.numpy())
        assert row["top1"] == pytest.approx(expected, abs=1.5 / len(asked.labels))  # float32 may turn one near tie
        low, high = row["top1_ci95"]
        assert low < row["top1"] < high
    assert result["top1"] == result["results"][1]["top1"] > 0.6
    assert result["neighbours"] == 20


def test_fewshot_of_a_backbone_without_head(headless, capsys):
    result = said(capsys, "evaluate", headless, "digits", "--protocol", "fewshot")
    assert set(result) == {
        "protocol", "num_images", "num_support", "num_classes", "shots", "draws", "seed", "l2", "top1", "top1_std", "results", "left_out",
        "split", "skipped", "skipped_files", "class_names",
    }  # fmt: skip
    assert [row["shots"] for row in result["results"]] == [1, 5, 10, 25]
    assert result["left_out"] == []
    for row in result["results"]:
        assert row["mean"] == pytest.approx(np.mean(row["values"]))
        assert row["std"] == pytest.approx(np.std(row["values"], ddof=1))
        assert len(row["values"]) == 3
    means = [row["mean"] for row in result["results"]]
    assert 0.2 < means[0] < means[-1] == result["top1"]
    assert result["shots"] == 25
    again = said(capsys, "evaluate", headless, "digits", "--protocol", "fewshot", "--shots", "5,1", "--seed", "0")
    assert again["results"] == result["results"][:2]
    other = said(capsys, "evaluate", headless, "digits", "--protocol", "fewshot", "--shots", "5", "--seed", "1")
    assert other["results"][0]["values"] != result["results"][1]["values"]


def test_the_classes_are_those_of_the_data_and_the_parts_those_of_the_source(stranger, photos, capsys):
    assert main(["evaluate", stranger, str(photos)]) == 2
    assert "--protocol knn" in capsys.readouterr().err
    result = said(capsys, "evaluate", stranger, str(photos), "--protocol", "knn", "--neighbours", "3")
    assert (result["split"], result["num_support"], result["num_images"]) == ("test", 31, 15)
    assert result["class_names"] == ["b", "g", "r"]
    assert [row["neighbours"] for row in result["results"]] == [3, 10, 20]  # 100 are more than there are
    assert result["top1"] == result["results"][0]["top1"] == 1.0
    assert said(capsys, "evaluate", stranger, str(photos), "--protocol", "knn", "--split", "val")["num_images"] == 4


def test_shots_that_a_class_has_no_images_for_are_left_out_by_name(stranger, photos, capsys):
    assert main(["evaluate", stranger, str(photos), "--protocol", "fewshot", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert [row["shots"] for row in result["results"]] == [1, 5]
    assert result["left_out"] == [{"shots": shots, "class": "g", "num_images": 7} for shots in (10, 25)]
    assert "25 shots are left out: the class 'g' has only 7 train images" in captured.err
    assert (result["shots"], result["top1"]) == (5, result["results"][-1]["mean"])


def test_python_does_what_the_command_does(stranger, photos, capsys):
    spoken = said(capsys, "evaluate", stranger, str(photos), "--protocol", "fewshot", "--shots", "2", "--seed", "4")
    assert kawara.evaluate(stranger, photos, protocol="fewshot", shots=[2], seed=4).to_dict() == spoken
    spoken = said(capsys, "evaluate", stranger, str(photos), "--protocol", "knn")
    assert kawara.evaluate(kawara.load(stranger), photos, protocol="knn").to_dict() == spoken
    with pytest.raises(UnknownNameError, match="fewshot"):
        kawara.evaluate(stranger, photos, protocol="fewshots")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="seed"):
        kawara.evaluate(stranger, photos, seed=1)  # type: ignore[call-overload]


def test_people_get_a_table(stranger, photos, capsys):
    assert main(["evaluate", stranger, str(photos), "--protocol", "knn"]) == 0
    shown = capsys.readouterr()
    assert "nearest of 31 train images" in shown.out
    assert "15 test images, 3 classes (chance 33.3%)" in shown.out
    assert "train 31, val 4, test 15" in shown.err
    assert main(["evaluate", stranger, str(photos), "--protocol", "fewshot"]) == 0
    assert "each draw" in capsys.readouterr().out


def test_measuring_images_that_were_trained_on_is_said(photos, tmp_path, capsys):
    small = ["--model", "vit_femto_conv_8", "--image-size", "16", "--steps", "2", "--set", "batch_size=8"]
    assert main(["train", str(photos), *small, "--out", str(tmp_path / "run")]) == 0
    model = str(tmp_path / "run" / "model.safetensors")
    capsys.readouterr()
    assert main(["evaluate", model, str(photos), "--protocol", "knn"]) == 0
    assert "trained on" not in capsys.readouterr().err
    (tmp_path / "swapped").mkdir()
    (tmp_path / "swapped" / "train").symlink_to(photos / "test")
    (tmp_path / "swapped" / "test").symlink_to(photos / "train")
    assert main(["evaluate", model, str(tmp_path / "swapped"), "--protocol", "knn"]) == 0
    assert "trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{headless}", "digits"], ["without a head", "--protocol knn"]),
        (["{headless}", "digits", "--protocol", "kmeans"], ["kmeans", "fewshot", "knn"]),
        (["{headless}", "digits", "--protocol", "knn", "--shots", "5"], ["shots", "fewshot"]),
        (["{headless}", "digits", "--protocol", "fewshot", "--neighbours", "5"], ["neighbours", "knn"]),
        (["{headless}", "digits", "--protocol", "fewshot", "--shots", "five"], ["1,5,10"]),
        (["{headless}", "digits", "--protocol", "fewshot", "--shots", "0,5"], ["1 or more"]),
        (["{headless}", "digits", "--protocol", "fewshot", "--seed", "-1"], ["negative"]),
        (["{headless}", "digits", "--protocol", "knn", "--neighbours", "0"], ["at least one"]),
        (["{headless}", "digits", "--protocol", "knn", "--neighbours", "5000"], ["fewer train images", "5000"]),
        (["{headless}", "digits", "--protocol", "knn", "--split", "train"], ["val, test"]),
        (["{stranger}", "{photos}", "--protocol", "fewshot", "--shots", "8"], ["'g'", "7", "--shots 7"]),
        (["{stranger}", "{photos}/test", "--protocol", "knn", "--neighbours", "15"], ["fewer train images"]),
        (["{stranger}", "{tmp}/only_test", "--protocol", "knn"], ["no train part", "test"]),
        (["{stranger}", "{tmp}/one_class", "--protocol", "knn"], ["two classes"]),
    ],
)
def test_a_mistake_is_explained_and_exits_with_2(headless, stranger, photos, tmp_path, capsys, arguments, words):
    make_folder(tmp_path / "only_test", {"test": {"r": 2, "g": 2}})
    make_folder(tmp_path / "one_class", {"": {"r": 9}})
    filled = [argument.format(headless=headless, stranger=stranger, photos=photos, tmp=tmp_path) for argument in arguments]
    assert main(["evaluate", *filled]) == 2
    captured = capsys.readouterr()
    for word in words:
        assert word in captured.err
    assert "Traceback" not in captured.err


def test_a_backbone_without_head_cannot_be_asked_for_names(headless, photos, capsys):
    predictor = kawara.load(headless)
    assert predictor.class_names == ()
    assert predictor.model(torch.zeros(2, 1, 8, 8)).shape == (2, 64)
    with pytest.raises(ConfigError, match="without a head"):
        predictor.predict(np.zeros((8, 8), np.uint8))
    assert main(["predict", headless, str(photos / "test")]) == 2
    assert "without a head" in capsys.readouterr().err
