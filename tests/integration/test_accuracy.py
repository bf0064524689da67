"""What the main job is worth: minutes of real training, run by hand with `make slow` on a quiet machine."""

from __future__ import annotations

import json

import pytest

from kawara.cli import main

pytestmark = pytest.mark.slow


def test_the_demo_keeps_its_promise(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["top1"] >= 0.975
    assert all(prediction["label"] == prediction["truth"] for prediction in result["predictions"])
    assert (tmp_path / "demo" / "report.html").exists()


def test_five_minutes_of_fashion(shared, tmp_path, capsys):
    assert main(["train", str(shared / "data" / "fashion_mnist"), "--minutes", "5", "--out", str(tmp_path / "run"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_images"] == 9000
    assert result["top1"] >= 0.90
    assert 0.9 * 300 <= result["seconds"] <= 1.1 * 300
