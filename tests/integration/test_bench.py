"""`kawara bench`: every run time answers alike, every number is there, and what cannot run is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kawara import verbs
from kawara.analysis.cost import vit_macs
from kawara.analysis.energy import energy_joules, energy_of
from kawara.analysis.peak import matrix_peak
from kawara.cli import main
from kawara.edge.runners import Network, available, runner
from kawara.errors import ConfigError, UnknownNameError
from kawara.models import create_model, model_config
from kawara.plots.bench import Timing, accuracy_plane, latencies
from kawara.report.bench_page import bench_page, first_case, sentence
from kawara.training.progress import Reporter
from kawara.verbs.benching import _overtaking_side

HERE = [name for name in available() if name != "compile"]


@pytest.mark.parametrize("name", ["vit_femto_conv_4", "resnet_femto"])
def test_every_run_time_answers_as_torch_does(tmp_path, name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, image_size=16, channels=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network = Network(model, tmp_path, "network")
    for batch in (1, 3):
        image = np.random.default_rng(batch).standard_normal((batch, 1, 16, 16), dtype=np.float32)
        with torch.inference_mode():
            wanted = model(torch.from_numpy(image)).numpy()
        assert np.abs(wanted).max() > 0.01
        for run_time in HERE:
            answer = runner(network, run_time, image, 1)()
            found = answer[0] if isinstance(answer, list) else np.asarray(answer)
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_bench_measures_every_case(tmp_path):
    with Reporter(quiet=True) as reporter:
        found = verbs.bench(
            verbs.BenchRequest(
                ["vit_femto_conv_4"], threads=(1, 2), batches=(1, 2), image_sizes=(16, 32), run_times=("torch",), twin=True,
                seconds=0.001, out=str(tmp_path / "out"),
            ),
            reporter,
        )  # fmt: skip
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert record == json.loads(json.dumps(found.record))
    assert len(record["rows"]) == 2 * 2 * 2 * 2  # models, threads, batches, sizes
    vit, twin = record["models"]
    assert (vit["family"], twin["family"]) == ("vit", "resnet")
    assert abs(twin["parameters"] / vit["parameters"] - 1) < 0.02
    for row in record["rows"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["p50_ms"])
        assert row["share_of_peak"] == pytest.approx(
            row["macs"] * row["batch"] / row["p50_ms"] * 1e3 / record["matrix_peak_macs"][str(row["threads"])]
        )
    of_size = {row["image_size_px"]: row["macs"] for row in record["rows"] if row["model"] == "vit_femto_conv_4"}
    assert of_size == {side: vit_macs(model_config("vit_femto_conv_4", image_size=side)) for side in (16, 32)}
    assert all(row["memory_bytes"] for row in record["rows"] if row["image_size_px"] == 16)
    page = found.report.read_text(encoding="utf-8")
    assert page.count("<svg") == 0  # figures travel as images
    assert "resnet" in page


def test_an_exported_file_is_timed_as_a_whole(tmp_path, capsys):
    if "onnx" not in HERE:
        pytest.skip("the extra `edge` is not installed")
    run = ["train", "digits", "--model", "vit_femto_conv_2", "--steps", "3", "--out", str(tmp_path / "run")]
    assert main([*run, "--json"]) == 0
    top1 = json.loads(capsys.readouterr().out)["top1"]
    model = tmp_path / "run" / "model.safetensors"
    assert main(["export", str(model)]) == 0
    capsys.readouterr()
    arguments = [str(model), str(model.with_suffix(".onnx")), "--runtime", "torch,onnx", "--seconds", "0.01"]
    assert main(["bench", *arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["run_time"], row["whole"]) for row in record["rows"]][-1] == ("model.onnx", "onnx", True)
    own, exported = record["models"]
    assert own["accuracy"]["top1"] == top1
    assert exported["accuracy"] is None


def test_the_side_from_which_attention_costs_more():
    config = model_config("vit_tiny_16")
    side = _overtaking_side(config)

    def shares(side: int) -> tuple[int, int]:
        tokens = 1 + (side // 16) ** 2
        return 2 * tokens**2 * 192, 4 * tokens * 192**2 + 2 * tokens * 192 * 768

    attention, linear = shares(side // 16 * 16)
    assert attention <= linear
    attention, linear = shares(side // 16 * 16 + 16)
    assert attention > linear
    assert _overtaking_side(model_config("resnet20")) is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"models": ["vit_femto_4"], "run_times": ("onx",)}, UnknownNameError, "onnx"),
        ({"models": ["vit_femto_4"], "threads": (0,)}, ConfigError, "--threads"),
        ({"models": ["vit_femto_4"], "seconds": 0}, ConfigError, "--seconds"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, error, message):
    with Reporter(quiet=True) as reporter, pytest.raises(error, match=message):
        verbs.bench(verbs.BenchRequest(**arguments), reporter)


def test_energy_is_the_difference_of_the_counters(tmp_path):
    assert energy_joules(tmp_path) is None
    for number, (name, value) in enumerate([("package-0", 5_000_000), ("core", 7_000_000), ("package-1", 1_000_000)]):
        domain = tmp_path / f"intel-rapl:{number}"
        domain.mkdir()
        (domain / "name").write_text(name + "\n")
        (domain / "energy_uj").write_text(str(value))
    assert energy_joules(tmp_path) == 6.0
    calls = []

    def run():
        calls.append(1)
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text(str(5_000_000 + 20_000 * len(calls)))

    assert energy_of(run, tmp_path) == pytest.approx(0.02)


def test_a_peak_is_a_rate():
    assert 1e8 < matrix_peak(1) < 1e14


def row(model, run_time, p50, *, threads=1, side=32, whole=False):
    return {
        "model": model, "run_time": run_time, "p50_ms": p50, "p95_ms": 1.2 * p50, "threads": threads, "batch": 1, "image_size_px": side,
        "whole": whole, "images_per_second": 1e3 / p50, "share_of_peak": 0.5, "memory_bytes": None, "joules_per_image": 0.01, "macs": 10**6,
    }  # fmt: skip


def record_of(rows):
    about = {"image_size": [32, 32], "parameters": 1000, "macs": 10**6, "attention_overtakes_px": 79}
    models = [
        {"label": "a", "accuracy": {"top1": 0.9, "top1_ci95": [0.88, 0.92]}, **about},
        {"label": "<b>", "accuracy": None, **about},
    ]
    environment = {"cpu": "test", "cores": 2, "packages": {"torch": "2", "kawara": "0"}}
    failures = [{"model": "a", "run_time": "compile", "reason": "no compiler"}]
    return {"models": models, "rows": rows, "failures": failures, "matrix_peak_macs": {"1": 4e10}, "environment": environment}


def test_the_sentence_names_the_fastest_and_the_page_escapes():
    rows = [row("a", "torch", 4.0), row("<b>", "onnx", 3.0), row("a", "openvino", 2.0), row("a", "torch", 1.0, threads=2)]
    rows += [row("a", "openvino", 9.0, side=64)]
    record = record_of(rows)
    assert sentence(record).en == "a in OpenVINO: 2 ms, 1.50 times as fast as <b>"
    assert len(first_case(record)) == 3
    page = bench_page(record)
    assert "&lt;b&gt;" in page
    assert "<b>," not in page
    assert "no compiler" in page
    assert sentence(record_of([])).en == "Nothing could be measured"


def test_figures_draw_every_timing():
    timings = [Timing("a", "torch", 4.0, 5.0, 0.9), Timing("a", "onnx", 2.0, 2.5, 0.9), Timing("b", "torch", 1.0, 1.1, 0.8)]
    (axes,) = latencies(timings).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    (axes,) = accuracy_plane(timings, language="ja").axes
    front = axes.lines[0]
    assert list(front.get_xdata()) == [1.0, 2.0]  # b is fastest, a in ONNX Runtime is right more often; a in torch is beaten
    assert accuracy_plane([]).axes
    assert latencies([]).axes
