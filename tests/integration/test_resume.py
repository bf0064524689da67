"""A run that is interrupted and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch

COMMON = ["digits", "--model", "vit_femto_conv_2", "--recipe", "small", "--set", "threads=1", "--set", "average_decay=0.9"]
COMMON += ["--set", "model.stochastic_depth=0.1", "--set", "task.mix.mixup=0.2", "--set", "augment.erasing=0.2"]
STEPS = 60


def kawara(*arguments: str, wait: bool = True) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "kawara", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if wait:
        process.wait(timeout=240)
    return process


def train(out: Path, *more: str, wait: bool = True) -> subprocess.Popen[str]:
    return kawara("train", *COMMON, "--steps", str(STEPS), "--out", str(out), "--json", *more, wait=wait)


def weights_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(safetensors.torch.load_file(folder / "model.safetensors").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def kill_after_first_checkpoint(process: subprocess.Popen[str], folder: Path, number: signal.Signals) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.safetensors").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.005)
    process.send_signal(number)
    process.wait(timeout=60)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    process = train(folder)
    assert process.returncode == 0, process.communicate()[1]
    return folder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_to_the_same_bits(uninterrupted, tmp_path, number):
    folder = tmp_path / "killed"
    process = train(folder, wait=False)
    kill_after_first_checkpoint(process, folder, number)
    assert not (folder / "model.safetensors").exists(), "the run was over before it could be killed"
    if number is signal.SIGINT:
        assert process.returncode == 130
        assert "--resume" in process.communicate()[1]
    resumed = train(folder, "--resume")
    assert resumed.returncode == 0, resumed.communicate()[1]
    assert weights_hash(folder) == weights_hash(uninterrupted)
    records = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    steps = [record["step"] for record in records if record["event"] == "validation"]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS


def test_the_seed_decides_and_the_number_of_workers_does_not(uninterrupted, tmp_path):
    assert train(tmp_path / "workers", "--set", "workers=3").returncode == 0
    assert weights_hash(tmp_path / "workers") == weights_hash(uninterrupted)
    assert train(tmp_path / "seed", "--seed", "1").returncode == 0
    assert weights_hash(tmp_path / "seed") != weights_hash(uninterrupted)


def test_a_finished_run_is_not_resumed(uninterrupted):
    process = train(uninterrupted, "--resume")
    out, err = process.communicate()
    assert process.returncode == 2
    assert "finished" in err
    assert json.loads(out)["error"] == "RunFolderError"


def test_a_damaged_checkpoint_is_named(uninterrupted, tmp_path):
    folder = tmp_path / "damaged"
    process = train(folder, wait=False)
    kill_after_first_checkpoint(process, folder, signal.SIGKILL)
    last = folder / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    resumed = train(folder, "--resume")
    assert resumed.returncode == 2
    assert "last.safetensors is damaged" in resumed.communicate()[1]
