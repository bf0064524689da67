"""Many images into Parquet: resumable, the same answers here and with Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kawara.cli import main
from kawara.data.preprocessing import Preprocessing
from kawara.errors import ConfigError, RunFolderError
from kawara.models import create_model
from kawara.predict import expand, load
from kawara.verbs import label
from kawara.weights import ModelCard, save_model

NUM_FILES = 13


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> tuple[str, list[str]]:
    """A model of four classes, and images of which one is no image."""
    folder = tmp_path_factory.mktemp("collection")
    torch.manual_seed(0)
    model = create_model("vit_femto_4", num_classes=4, image_size=8, channels=3)
    torch.nn.init.normal_(model.head.weight)
    preprocessing = Preprocessing(image_size=(8, 8), color="rgb", crop_fraction=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
    save_model(folder / "model.safetensors", model.state_dict(), ModelCard("vit_femto_4", model.config, tuple("abcd"), preprocessing))
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for number in range(NUM_FILES):
        Image.fromarray(random.integers(0, 256, (12, 10, 3), np.uint8)).save(folder / "images" / f"{number:02}.png")
    (folder / "images" / "07.png").write_bytes(b"no image")
    return str(folder / "model.safetensors"), expand([str(folder / "images")])


def read(folder: Path) -> list[dict]:
    parquet = pytest.importorskip("pyarrow.parquet")
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in parquet.read_table(path).to_pylist()]


def check(rows: list[dict], model: str, files: list[str]) -> None:
    assert [row["path"] for row in rows] == files
    assert rows[7]["label"] is None
    assert rows[7]["error"]
    good = [row for row in rows if row["error"] is None]
    expected = load(model).predict([row["path"] for row in good], top=3)
    assert [row["label"] for row in good] == [found.label for found in expected]
    for row, found in zip(good, expected, strict=True):
        assert row["top_labels"] == [guess.label for guess in found.top]
        np.testing.assert_allclose(row["top_scores"], [guess.score for guess in found.top], atol=1e-6)
        assert row["index"] == found.index


def test_parts_that_are_done_are_kept_and_others_are_made(collection, tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra ray")
    model, files = collection
    found = label(model, files, tmp_path / "labels", top=3, part_files=4, batch_size=3)
    assert (found.num_files, found.failed, found.num_parts, found.done_before) == (NUM_FILES, 1, 4, 0)
    check(read(tmp_path / "labels"), model, files)
    kept, lost = (tmp_path / "labels" / f"part-{part:06d}.parquet" for part in (1, 2))
    written, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    assert label(model, files, tmp_path / "labels", top=3, part_files=4, batch_size=3).done_before == 3
    assert kept.stat().st_mtime_ns == written
    assert lost.read_bytes() == content


def test_a_folder_that_is_about_something_else_is_refused(collection, tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra ray")
    model, files = collection
    label(model, files[:3], tmp_path / "labels")
    other = tmp_path / "other.safetensors"
    other.write_bytes(Path(model).read_bytes().replace(b'"a"', b'"e"').replace(b'\\"a\\"', b'\\"e\\"'))
    with pytest.raises(RunFolderError, match="another model"):
        label(str(other), files[:3], tmp_path / "labels")
    with pytest.raises(RunFolderError, match="other images"):
        label(model, files[1:4], tmp_path / "labels")
    with pytest.raises(RunFolderError, match="top 5"):
        label(model, files[:3], tmp_path / "labels", top=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(RunFolderError, match="something else"):
        label(model, files, tmp_path / "full")


def test_what_is_missing_is_named(collection, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"kawara\[ray\]"):
        label(collection[0], collection[1], tmp_path / "labels")


def test_the_command_says_what_goes_together(collection, tmp_path, capsys):
    model, files = collection
    assert main(["predict", model, files[0], "--engine", "ray"]) == 2
    assert "--out DIR" in capsys.readouterr().err
    assert main(["predict", model, files[0], "--csv", "--out", str(tmp_path / "labels")]) == 2


@pytest.mark.slow
def test_ray_gives_the_answers_of_this_process_and_goes_on_where_it_was_killed(collection, tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray")
    model, files = collection
    command = [sys.executable, "-m", "kawara", "predict", model, *files, "--top", "3", "--engine", "ray", "--out", "labels", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 2, done.stderr  # one file is no image
    assert json.loads(done.stdout)["failed"] == 1
    check(read(tmp_path / "labels"), model, files)

    label(model, files, tmp_path / "cut", top=3, part_files=4)
    expected = read(tmp_path / "cut")
    for part in (0, 3):
        (tmp_path / "cut" / f"part-{part:06d}.parquet").unlink()
    assert label(model, files, tmp_path / "cut", top=3, part_files=4, engine="ray").done_before == 2
    assert read(tmp_path / "cut") == expected
