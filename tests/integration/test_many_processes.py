"""`kawara train --devices 2` as a person runs it: the result of one process, one speaker, and an end when a process dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from kawara.cli import main
from kawara.errors import ConfigError
from kawara.training.launching import STARTED_HERE, is_to_be_launched

COMMON = ["train", "digits", "--model", "vit_femto_conv_2", "--recipe", "small", "--set", "threads=1", "--json"]


def start(*arguments: str, program: tuple[str, ...] = ("-m", "kawara"), **streams) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *program, *arguments], env=environment, text=True, **streams)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def run(*arguments: str, program: tuple[str, ...] = ("-m", "kawara")) -> tuple[int, str, str]:
    return finish(start(*arguments, program=program, stdout=subprocess.PIPE, stderr=subprocess.PIPE))


def process_of_rank(rank: int, parent: int) -> int:
    for entry in Path("/proc").iterdir():
        try:
            is_child = entry.name.isdecimal() and f"\nPPid:\t{parent}\n" in (entry / "status").read_text()
            if is_child and f"RANK={rank}\0" in "\0" + (entry / "environ").read_text():
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"no process {rank}")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_a_process_that_dies_ends_the_run_with_a_message_and_the_run_goes_on(tmp_path):
    folder = tmp_path / "run"
    process = start(*COMMON, "--steps", "300", "--out", str(folder), "--devices", "2", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (folder / "checkpoints" / "last.safetensors").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
    killed_at = time.monotonic()
    code, out, err = finish(process)
    assert time.monotonic() - killed_at < 30  # three seconds of grace, and a machine that may be busy
    assert code == 2
    assert "Process 1 of 2 was ended by signal 9 (SIGKILL" in err
    assert "--resume" in err
    assert json.loads(out)["error"] == "ProcessFailedError"

    going_on = start(*COMMON, "--out", str(folder), "--resume", stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # with one process
    while going_on.poll() is None and "train" not in (folder / "journal.jsonl").read_text().splitlines()[-1]:
        time.sleep(0.05)
    going_on.send_signal(signal.SIGINT)
    code, out, err = finish(going_on)
    assert code == 130, err
    assert "going on with the unfinished run" in err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["devices", "torchrun"])
def test_many_processes_give_the_model_of_one_and_one_of_them_speaks(tmp_path, launcher, record_property):
    common = [*COMMON, "--steps", "20", "--set", "task.mix.mixup=0.4", "--set", "task.mix.cutmix=1.0"]
    common += ["--set", "model.stochastic_depth=0.2", "--set", "average_decay=0.9", "--set", "optimizer.clip_norm=1"]
    code, expected, err = run(*common, "--out", str(tmp_path / "one"))
    assert code == 0, err
    if launcher == "devices":
        code, out, err = run(*common, "--out", str(tmp_path / "many"), "--devices", "2")
    else:
        program = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "kawara")
        code, out, err = run(*common, "--out", str(tmp_path / "many"), program=program)
    assert code == 0, err
    assert err.count("validation at step 20") == 1
    found, expected = json.loads(out), json.loads(expected)
    assert found["top1"] == pytest.approx(expected["top1"], abs=0.012)  # three images of 263 may lie on the edge
    assert found["nll"] == pytest.approx(expected["nll"], rel=1e-4)
    one, many = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("one", "many"))
    record_property("processes", 2 if launcher == "devices" else 3)
    record_property("largest_difference", max(float((many[name] - value).abs().max()) for name, value in one.items()))
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, atol=5e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_a_divided_model_is_trained_and_reported(tmp_path):
    common = [*COMMON, "--steps", "20", "--devices", "2", "--set", "optimizer.name=adamw"]
    for name, more in (("whole", []), ("divided", ["--set", "shard=true"])):
        code, _, err = run(*common, "--out", str(tmp_path / name), *more)
        assert code == 0, err
    whole, divided = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("whole", "divided"))
    for name, value in whole.items():
        torch.testing.assert_close(divided[name], value, atol=5e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
    assert (tmp_path / "divided" / "report.html").exists()


def test_what_does_not_fit_is_said_before_processes_are_started(tmp_path, capsys, monkeypatch):
    assert main([*COMMON, "--devices", "0", "--out", str(tmp_path / "run")]) == 2
    assert "--devices is at least 1" in capsys.readouterr().err
    assert main([*COMMON, "--set", "shard=true", "--steps", "1", "--out", str(tmp_path / "run")]) == 2
    assert "--devices 2" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"):
        is_to_be_launched(2)
    monkeypatch.setenv(STARTED_HERE, "1")
    assert not is_to_be_launched(2)
