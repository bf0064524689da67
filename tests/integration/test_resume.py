"""Nothing is lost: a run that is killed, at whatever moment and however often, ends with the same bits if the same command is given again."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import kawara as kawara_package
from kawara.data.preprocessing import Preprocessing
from kawara.models import create_model
from kawara.weights import ModelCard, save_model

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

STEPS = 30
TRAIN = ["--model", "vit_femto_4", "--recipe", "small", "--image-size", "8", "--steps", str(STEPS), "--set", "batch_size=8"]
TRAIN += ["--set", "threads=1", "--set", "average_decay=0.9", "--set", "model.stochastic_depth=0.1", "--set", "task.mix.mixup=0.2"]
KILL = [signal.SIGKILL]


def make_photos(folder: Path) -> Path:
    """Write noisy pictures of three tints, a folder each."""
    draw = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = draw.integers(0, 200, (9, 8, 3))
            pixels[..., channel] += 30
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


class Kawara:
    """Commands in forks of one process that has imported everything: see fork_server.py."""

    def __init__(self, cwd: Path):
        package = str(Path(kawara_package.__file__).parents[1])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "KAWARA_CACHE": str(cwd / "cache"), "PYTHONPATH": package}
        self.cwd, self.output = cwd, cwd / "output.txt"
        warm_up = ["train", str(make_photos(cwd / "photos")), *TRAIN, "--out", "warm-up", "--set", "model.dropout=0.1"]
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py")), *warm_up],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=cwd, env=environment,
        )  # fmt: skip

    def __call__(self, *arguments: object, stop: dict[str, Any] | None = None, kill_after: float | None = None) -> tuple[int, str]:
        """Return exit status and all output of one command, killed after some seconds or at a point of its work."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.output.write_text("")
        command = {"arguments": list(map(str, arguments)), "output": str(self.output), "stop": stop}
        self.server.stdin.write(json.dumps(command) + "\n")
        self.server.stdin.flush()
        process = int(self.server.stdout.readline())
        timer = threading.Timer(kill_after, os.kill, (process, signal.SIGKILL)) if kill_after is not None else None
        if timer is not None:
            timer.start()
        status = int(self.server.stdout.readline())
        if timer is not None:
            timer.cancel()
        return status, self.output.read_text()

    def killed(self, *arguments: object, at: str, count: int = 1, half: bool = False) -> None:
        status, output = self(*arguments, stop={"at": at, "count": count, "half": half, "signals": KILL})
        assert status == -signal.SIGKILL, f"{at} was never reached\n{output}"

    def finished(self, *arguments: object) -> str:
        status, output = self(*arguments)
        assert status == 0, output
        return output


@pytest.fixture(scope="module")
def kawara(tmp_path_factory) -> Iterator[Kawara]:
    running = Kawara(tmp_path_factory.mktemp("work"))
    yield running
    assert running.server.stdin is not None
    running.server.stdin.close()
    running.server.wait(timeout=30)


def weights_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(safetensors.torch.load_file(folder / "model.safetensors").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def history(folder: Path) -> list[tuple[str, int]]:
    """Return the steps of all validations and of the end, as the journal has them; every line must be whole."""
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [(record["event"], record["step"]) for record in records if record["event"] != "train"]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class Whole:
    """The run that nobody disturbed."""

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.seconds, self.hash, self.history = folder, seconds, weights_hash(folder), history(folder)

    def is_equalled_by(self, folder: Path) -> None:
        assert weights_hash(folder) == self.hash
        assert history(folder) == self.history
        assert files_in(folder) == files_in(self.folder)


@pytest.fixture(scope="module")
def whole(kawara) -> Whole:
    started = time.monotonic()
    kawara.finished("train", "photos", *TRAIN, "--out", "whole")
    return Whole(kawara.cwd / "whole", time.monotonic() - started)


def test_the_journal_of_an_undisturbed_run(whole):
    assert whole.history == [*(("validation", step) for step in range(3, 31, 3)), ("finished", STEPS)]


def test_twenty_kills_at_random_moments_leave_the_same_bits(kawara, whole):
    """Half of the kills follow the clock, half strike at a random event or half-way through what is being written."""
    draw = random.Random(0)
    command = ["train", "photos", *TRAIN, "--out", "often-killed"]
    kills = 0
    while kills < 20:
        if kills % 2:
            status, output = kawara(*command, kill_after=draw.uniform(0.1, 1.0) * whole.seconds / 4)
        else:
            stop = {"at": "any", "count": draw.randint(1, 9), "half": draw.random() < 0.5, "signals": KILL}
            status, output = kawara(*command, stop=stop)
        if status != -signal.SIGKILL:
            assert status == 0, output
            break
        kills += 1
    if status:
        kawara.finished(*command)
    assert kills >= 12
    whole.is_equalled_by(kawara.cwd / "often-killed")


PHASES = [
    ("decoding", 30), ("environment.json", 1), ("inputs.json", 1), ("config.yaml", 1), ("journal: train", 1), ("validation", 1),
    ("journal: validation", 1), ("best.safetensors", 1), ("last.safetensors", 1), ("journal: train", 3), ("best.safetensors", 2),
    ("last.safetensors", 2), ("validation", 5), ("journal: validation", 4), ("last.safetensors", 5), ("evaluation", 1),
    ("model.safetensors", 1), ("curves.png", 1), ("report.html", 1), ("journal: finished", 1), ("metrics.json", 1),
]  # fmt: skip


def test_a_kill_in_each_phase_leaves_the_same_bits(kawara, whole, monkeypatch):
    """One run goes through them all; what a kill leaves half-written is there when the next begins."""
    command = ["train", "photos", *TRAIN, "--out", "phases"]
    for path in (kawara.cwd / "cache").glob("*"):
        path.unlink()
    for number, (phase, count) in enumerate(PHASES):
        kawara.killed(*command, at=phase, count=count, half=number % 2 == 0)
    kawara.finished(*command)
    whole.is_equalled_by(kawara.cwd / "phases")
