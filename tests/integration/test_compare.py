"""`kawara compare` and `kawara ablate` from the command line, on real digits with runs of a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kawara.analysis import latency
from kawara.cli import main
from kawara.config import override, read_file
from kawara.training.run_config import RunConfig
from kawara.verbs import comparison, contenders, training
from kawara.verbs.answering import SPOILED, sides_of_files

SHORT = ["digits", "--model", "vit_femto_conv_2", "--steps", "12", "--set", "batch_size=32"]


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Leave out what other tests look at: the pages of the runs, memory, large images."""
    patch.setattr(training, "write_report", lambda *_: None)
    patch.setattr(comparison, "answering_memory_bytes", lambda config, *, threads: 5_000_000)
    patch.setattr(latency, "usual_sizes", lambda config: [min(config.image_size)])


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    shorten(monkeypatch)
    monkeypatch.setattr(comparison, "write_comparison_page", lambda path, record: None)


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        assert main(["compare", *SHORT, "--seeds", "2", "--out", str(out)]) == 0
    return out


def record_of(out: Path) -> dict:
    return json.loads((out / "comparison.json").read_text())


def test_both_sides_are_trained_alike_and_reported(compared):
    record = record_of(compared)
    assert json.loads((compared / "choices.json").read_text())["twin"] == "resnet_femto"
    assert record["labels"] == ["vit_femto_conv_2", "resnet_femto"]
    assert abs(record["match"]["mismatch"]) <= 0.02
    first, second = record["sides"]
    assert abs(second["parameters"] / first["parameters"] - 1) == pytest.approx(abs(record["match"]["mismatch"]))
    for seed in (0, 1):
        configs = [read_file(compared / label / f"seed-{seed}" / "config.yaml") for label in record["labels"]]
        for config in configs:
            assert config.pop("model")["name"] in record["labels"]
        assert configs[0] == configs[1]
        assert configs[0]["seed"] == seed
    for side in record["sides"]:
        assert len(side["top1_of_seeds"]) == 2
        assert side["top1"] == pytest.approx(np.mean(side["top1_of_seeds"]))
        measured = [json.loads((Path(file).parent / "metrics.json").read_text())["top1"] for file in side["files"]]
        assert side["top1_of_seeds"] == pytest.approx(measured)
        assert side["macs"] > 0 < side["latency_p50_ms"] <= side["latency_p95_ms"]
    assert record["verdict"]["difference"] == pytest.approx(first["top1"] - second["top1"])
    for pair, test in zip(zip(*(side["top1_of_seeds"] for side in record["sides"])), record["mcnemar"]):
        assert (test["only_first"] - test["only_second"]) / record["num_images"] == pytest.approx(pair[0] - pair[1])
    assert {name: [level["strength"] for level in levels[1:]] for name, levels in record["robustness"].items()} == {
        name: list(strengths) for name, strengths in SPOILED.items()
    }
    assert record["robustness"]["noise"][0]["top1"] == pytest.approx([side["top1"] for side in record["sides"]])
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert 'src="http' not in page
    assert "What each costs" in page
    assert "劣化した画像に対する強さ" in page


def test_finished_runs_are_not_repeated_and_interrupted_ones_go_on(compared, capsys, monkeypatch):
    model = compared / "resnet_femto" / "seed-1" / "model.safetensors"
    kept = compared / "vit_femto_conv_2" / "seed-0" / "model.safetensors"
    before = {file: file.stat().st_mtime_ns for file in (model, kept)}
    weights = model.read_bytes()
    (model.parent / "metrics.json").unlink()
    monkeypatch.setattr(comparison, "find_twin", lambda *_, **__: pytest.fail("a twin that was found is not looked for again"))
    assert main(["compare", *SHORT, "--seeds", "2", "--out", str(compared), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == str(compared / "report.html")
    assert kept.stat().st_mtime_ns == before[kept]
    assert model.stat().st_mtime_ns > before[model]
    assert len(weights) == len(model.read_bytes())


def test_other_settings_need_another_folder(compared, capsys):
    other = ["digits", "--model", "vit_femto_conv_2", "--steps", "13", "--set", "batch_size=32"]
    assert main(["compare", *other, "--seeds", "2", "--out", str(compared)]) == 2
    assert "other settings" in capsys.readouterr().err
    assert main(["compare", *SHORT, "--out", str(compared / "resnet_femto" / "seed-0")]) == 2
    assert "folder of a training run" in capsys.readouterr().err


def test_somebody_who_interrupts_is_told_how_to_go_on(tmp_path, capsys, monkeypatch):
    class Stopped:
        interrupted = True

    monkeypatch.setattr(contenders, "run_training", lambda request, reporter: Stopped())
    assert main(["compare", *SHORT, "--twin", "resnet_femto", "--out", str(tmp_path / "out")]) == 130
    assert f"--out {tmp_path / 'out'}" in " ".join(capsys.readouterr().err.split())


def test_two_files_are_compared_on_the_images_both_were_held_out_of(compared, tmp_path, capsys):
    files = [str(compared / label / "seed-0" / "model.safetensors") for label in ("vit_femto_conv_2", "resnet_femto")]
    assert main(["compare", *files, "digits", "--out", str(tmp_path / "two"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["compared"] == "models"
    assert found["labels"] == ["vit_femto_conv_2", "resnet_femto"]
    trained = record_of(compared)
    assert found["num_images"] == trained["num_images"]
    assert found["verdict"]["difference"] == pytest.approx(
        trained["sides"][0]["top1_of_seeds"][0] - trained["sides"][1]["top1_of_seeds"][0]
    )


def test_a_file_against_itself_shows_no_difference(compared, tmp_path, capsys):
    file = str(compared / "resnet_femto" / "seed-0" / "model.safetensors")
    assert main(["compare", file, file, "digits", "--out", str(tmp_path / "same")]) == 0
    said = capsys.readouterr().out
    assert "No difference was found." in said
    assert record_of(tmp_path / "same")["verdict"]["difference_ci95"] == [0.0, 0.0]


def test_what_does_not_act_or_fit_is_refused(compared, capsys):
    file = str(compared / "resnet_femto" / "seed-0" / "model.safetensors")
    assert main(["compare", file, file, "digits", "--seeds", "2"]) == 2
    assert "--seeds" in capsys.readouterr().err
    assert main(["compare", file, "digits"]) == 2
    assert "2 paths" in capsys.readouterr().err
    assert main(["compare", *SHORT, "--seeds", "0"]) == 2
    assert main(["ablate", *SHORT, "--without", "mixup"]) == 2
    assert "does without that already" in capsys.readouterr().err
    assert main(["ablate", *SHORT, "--without", "muno"]) == 2
    assert "muon" in capsys.readouterr().err


def test_ablation_takes_out_one_ingredient_at_a_time(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["ablate", *SHORT, "--seeds", "1", "--without", "label_smoothing,muon", "--out", str(out)]
    assert main(command) == 0
    assert "without label smoothing" in capsys.readouterr().out
    found = json.loads((out / "ablation.json").read_text())
    assert [row["without"] for row in found["rows"]] == ["label_smoothing", "muon"]
    assert "ラベル平滑化" in (out / "report.html").read_text(encoding="utf-8")
    digests = {found["complete"]["config_digest"], *(row["config_digest"] for row in found["rows"])}
    assert len(digests) == 3
    complete = read_file(out / "complete" / "seed-0" / "config.yaml")
    for row in found["rows"]:
        assert row["verdict"]["difference"] == pytest.approx(row["top1"] - found["complete"]["top1"])
        assert row["verdict"]["decision"].startswith(("cannot know", "too few"))  # one seed
        changed = read_file(out / f"without-{row['without']}" / "seed-0" / "config.yaml")
        base = RunConfig()
        assert override(base, flat(changed)) == override(override(base, flat(complete)), row["settings"])


def flat(values: dict, path: str = "") -> dict:
    found: dict = {}
    for name, value in values.items():
        full = f"{path}.{name}" if path else name
        found |= flat(value, full) if isinstance(value, dict) and full != "model.options" else {full: value}
    return found


def test_files_are_named_by_what_tells_them_apart():
    named = lambda *paths: [side.label for side in sides_of_files(*paths)]  # noqa: E731
    assert named("runs/a/seed-0/model.safetensors", "runs/b/seed-0/model.safetensors") == ["a", "b"]
    assert named("old.safetensors", "runs/new.safetensors") == ["old.safetensors", "runs/new.safetensors"]
    assert named("m.safetensors", "m.safetensors") == ["m.safetensors", "m.safetensors (again)"]
