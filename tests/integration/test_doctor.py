"""A run that learns nothing is stopped with a reason and a command that mends it; one that learns is left alone."""

from __future__ import annotations

import json
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kawara.cli import main
from kawara.errors import DivergedError, HopelessError
from kawara.verbs import train

COMMON = {"optimizer.name": "adamw", "batch_size": 16, "threads": 1}


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """360 grey images of noise in 6 classes: nothing can be learned from them that holds for others."""
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    np.savez(path, images=draw.integers(0, 256, (360, 8, 8), dtype=np.uint8), labels=np.arange(360) % 6)
    return path


def journal(folder: Path, event: str) -> list[dict]:
    return [record for line in (folder / "journal.jsonl").read_text().splitlines() if (record := json.loads(line))["event"] == event]


def run(data: Path, out: Path, rate: float = 1.0, **options):
    settings = COMMON | {"optimizer.lr": rate} | options.pop("settings", {})
    return train(data, model="vit_femto_4", recipe="small", epochs=4, out=out, quiet=True, settings=settings, **options)


@pytest.fixture(scope="module")
def stopped(noise, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.raises(HopelessError, match=r"(?s)After 2 epochs.*times the 0.0011.*try: +kawara train "):
        run(noise, out)
    return out


def test_the_reason_and_the_command_are_in_the_journal(stopped):
    looks, (end,) = journal(stopped, "look"), journal(stopped, "stopped")
    assert [look["epoch"] for look in looks] == [1, 2]
    assert looks[-1]["validation_images"] == 61
    assert end["kind"] == "rate"
    words = shlex.split(end["command"])
    assert words[:2] == ["kawara", "train"]
    assert "optimizer.lr" not in end["command"]
    assert words[words.index("--out") + 1] == f"{stopped}-1"
    codes = [record["code"] for record in journal(stopped, "remark")]
    assert codes[:3] == ["expectation", "few_tokens", "high optimizer.lr"]


def test_warn_says_the_same_and_goes_on_and_a_resumed_run_is_judged_alike(noise, stopped, tmp_path):
    whole = run(noise, tmp_path / "whole", settings={"doctor": "warn"})
    assert whole.epochs == 4
    assert "rate" in [record["code"] for record in journal(whole.folder, "remark")]
    resumed = run(noise, stopped, resume=True, settings={"doctor": "warn"})
    assert journal(resumed.folder, "look") == journal(whole.folder, "look")
    measured = [record["entropy_share"] for record in journal(whole.folder, "attention")]
    assert len(measured) >= 4
    assert all(len(shares) == 3 and 0 <= min(shares) <= max(shares) <= 1.0001 for shares in measured)
    assert "next to nothing was learned" in (whole.folder / "report.html").read_text(encoding="utf-8")


def test_off_does_not_look(noise, tmp_path):
    result = run(noise, tmp_path / "off", settings={"doctor": "off"})
    assert not journal(result.folder, "look") + journal(result.folder, "attention") + journal(result.folder, "remark")


def test_a_loss_that_is_not_finite_names_the_layer_and_the_command(noise, tmp_path):
    with pytest.raises(DivergedError, match=r"(?s)first layer that is not finite is .*batch of .*try: +kawara train "):
        run(noise, tmp_path / "diverged", rate=1e30)
    (end,) = journal(tmp_path / "diverged", "stopped")
    assert "first layer" in end["reason"]


def test_the_command_line_leaves_with_2(noise, tmp_path, capsys):
    settings = [word for path, value in (COMMON | {"optimizer.lr": 1.0}).items() for word in ("--set", f"{path}={value}")]
    code = main(["train", str(noise), "--model", "vit_femto_4", "--epochs", "4", "--out", str(tmp_path / "cli"), "--json", *settings])
    answer = json.loads(capsys.readouterr().out)
    assert (code, answer["error"]) == (2, "HopelessError")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_deit_72_is_stopped_and_the_command_beats_chance_by_30_points(shared, tmp_path, record_property):
    """Six classes of 450 images, DeiT's recipe, rate 0.1: https://github.com/facebookresearch/deit/issues/72."""
    counts: dict[str, int] = {}
    with zipfile.ZipFile(shared / "data" / "cifar10" / "train.zip") as archive:
        for name in sorted(archive.namelist()):
            label = Path(name).parent.name
            if label in ("airplane", "automobile", "bird", "cat", "deer", "dog") and counts.get(label, 0) < 450 and name.endswith(".jpg"):
                counts[label] = counts.get(label, 0) + 1
                path = tmp_path / "six" / label / Path(name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    assert list(counts.values()) == [450] * 6
    out = tmp_path / "replay"
    with pytest.raises(HopelessError):
        train(tmp_path / "six", recipe="deit", model="vit_femto_8", image_size=32, out=out, quiet=True, settings={"optimizer.lr": 0.1})
    (end,) = journal(out, "stopped")
    record_property("stopped_after_epoch", journal(out, "look")[-1]["epoch"])
    assert journal(out, "look")[-1]["epoch"] <= 3
    assert main(shlex.split(end["command"])[1:]) == 0
    metrics = json.loads((tmp_path / "replay-1" / "metrics.json").read_text())
    record_property("top1", metrics["top1"])
    assert metrics["top1"] > 1 / 6 + 0.3
