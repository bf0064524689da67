"""Nothing is lost: a run that is killed, at whatever moment and however often, ends with the same bits by the same command."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
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
from kawara.files import held
from kawara.models import create_model
from kawara.weights import ModelCard, load_model, save_model

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

STEPS = 30
TRAIN = ["--model", "vit_femto_4", "--recipe", "small", "--image-size", "8", "--steps", str(STEPS), "--set", "batch_size=8"]
TRAIN += ["--set", "doctor=off"]  # moments are counted in journal records; test_doctor.py resumes runs that are watched
TRAIN += ["--set", "threads=1", "--set", "average_decay=0.9", "--set", "model.stochastic_depth=0.1", "--set", "task.mix.mixup=0.2"]


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

    def __call__(self, *arguments: object, stop: dict[str, Any] | None = None) -> tuple[int, str]:
        """Return exit status and all output of one command, which may be stopped at a point of its work."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.output.write_text("")
        command = {"arguments": list(map(str, arguments)), "output": str(self.output), "stop": stop}
        self.server.stdin.write(json.dumps(command) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline()), self.output.read_text()

    def killed(self, *arguments: object, at: str, count: int = 1, half: bool = False) -> None:
        status, output = self(*arguments, stop={"at": at, "count": count, "half": half})
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

    def __init__(self, folder: Path):
        self.folder, self.hash, self.history = folder, weights_hash(folder), history(folder)

    def is_equalled_by(self, folder: Path) -> None:
        assert weights_hash(folder) == self.hash
        assert history(folder) == self.history
        assert files_in(folder) == files_in(self.folder)


@pytest.fixture(scope="module")
def whole(kawara) -> Whole:
    kawara.finished("train", "photos", *TRAIN, "--out", "whole")
    return Whole(kawara.cwd / "whole")


def test_the_journal_of_an_undisturbed_run(whole):
    assert whole.history == [*(("validation", step) for step in range(3, 31, 3)), ("finished", STEPS)]


def test_twenty_kills_at_random_moments_leave_the_same_bits(kawara, whole, record_property):
    """A third of them just before or after a file gets its name, a third half-way through what is written, a third anywhere."""
    draw = random.Random(0)
    command = ["train", "photos", *TRAIN, "--out", "often-killed"]
    kills, status = 0, -1
    while kills < 20 and status < 0:
        kind = kills % 3
        stop = {"at": "any", "count": draw.randint(1, 8), "half": kind == 1, "delay": draw.uniform(1e-4, 0.06) if kind == 2 else 0}
        status, output = kawara(*command, stop=stop)
        assert status in (0, -signal.SIGKILL, -signal.SIGPROF) or "is finished" in output, output  # finished, if it died at the very end
        kills += status < 0
    if status < 0:
        kawara.finished(*command)
    record_property("kills", kills)
    assert kills >= 15
    whole.is_equalled_by(kawara.cwd / "often-killed")


PHASES = [
    ("decoding", 30), ("environment.json", 1), ("inputs.json", 1), ("config.yaml", 1), ("journal: train", 1), ("validation", 1),
    ("journal: validation", 1), ("best.safetensors", 1), ("last.safetensors", 1), ("journal: train", 3), ("best.safetensors", 2),
    ("last.safetensors", 2), ("validation", 2), ("journal: validation", 2), ("last.safetensors", 2), ("evaluation", 1),
    ("model.safetensors", 1), ("curves.png", 1), ("report.html", 1), ("journal: finished", 1), ("metrics.json", 1),
]  # fmt: skip


def test_a_kill_in_each_phase_leaves_the_same_bits(kawara, whole):
    """One run goes through them all; what a kill leaves half-written is there when the next begins."""
    command = ["train", "photos", *TRAIN, "--out", "phases"]
    for path in (kawara.cwd / "cache").glob("*"):
        path.unlink()
    for number, (phase, count) in enumerate(PHASES):
        kawara.killed(*command, at=phase, count=count, half=number % 2 == 0)
    kawara.finished(*command)
    whole.is_equalled_by(kawara.cwd / "phases")


def interrupted(kawara: Kawara, *arguments: object, at: str, count: int = 1, times: int = 1, number: int = signal.SIGINT) -> str:
    """Return what a command says that gets a signal at a point of its work."""
    status, output = kawara(*arguments, stop={"at": at, "count": count, "signals": [number] * times})
    assert status == 130, output
    assert "Traceback" not in output
    return output


def test_ctrl_c_in_training_finishes_the_step_and_says_how_to_go_on(kawara, whole):
    """The first comes while step 3 is written down, before its validation: that has to be made up for."""
    command = ["train", "photos", *TRAIN, "--out", "stopped"]
    said = interrupted(kawara, *command, at="journal: train")
    assert "Finishing this step" in said
    assert "Stopped at step 3; nothing is lost. To go on:  kawara train photos --out stopped --resume" in said
    assert "Stopped at once" in interrupted(kawara, *command, at="journal: train", times=2)
    assert "Stopped at step 6;" in interrupted(kawara, *command, at="validation", number=signal.SIGTERM)
    assert "Stopped at step 9;" in interrupted(kawara, *command, at="last.safetensors", number=signal.SIGTERM)
    assert f"Stopped at step {STEPS};" in interrupted(kawara, *command, at="journal: train", count=7)
    kawara.finished("train", "photos", "--out", "stopped", "--resume")
    whole.is_equalled_by(kawara.cwd / "stopped")


def test_ctrl_c_elsewhere_says_how_to_go_on(kawara, whole):
    for path in (kawara.cwd / "cache").glob("*"):
        path.unlink()
    command = ["train", "photos", *TRAIN, "--out", "stopped-elsewhere"]
    assert "before training began" in interrupted(kawara, *command, at="decoding", count=20)
    assert "before training began" in interrupted(kawara, *command, at="decoding", count=20, number=signal.SIGTERM)
    assert not (kawara.cwd / "stopped-elsewhere").exists()
    assert list((kawara.cwd / "cache").iterdir()) == []
    for phase, number in (("evaluation", signal.SIGINT), ("model.safetensors", signal.SIGTERM), ("report.html", signal.SIGINT)):
        said = interrupted(kawara, *command, at=phase, number=number)
        assert "To go on:  kawara train photos --out stopped-elsewhere --resume" in said
    kawara.finished(*command)
    whole.is_equalled_by(kawara.cwd / "stopped-elsewhere")


def test_the_seed_decides_and_the_number_of_workers_does_not(kawara, whole):
    kawara.killed("train", "photos", *TRAIN, "--out", "workers", "--set", "workers=4", at="last.safetensors", count=3)
    kawara.finished("train", "photos", *TRAIN, "--out", "workers", "--set", "workers=1")
    whole.is_equalled_by(kawara.cwd / "workers")
    kawara.finished("train", "photos", *TRAIN, "--out", "seed", "--seed", 1)
    assert weights_hash(kawara.cwd / "seed") != whole.hash


def test_what_is_there_decides_what_the_command_does(kawara, whole):
    command = ["train", "photos", *TRAIN]
    status, output = kawara(*command, "--out", "whole")
    assert status == 2
    assert "whole exists already; its run is finished." in output
    kawara.killed(*command, at="last.safetensors", count=2)
    kawara.killed(*command, "--seed", 7, at="config.yaml")
    said = interrupted(kawara, *command, at="journal: train")
    assert (
        "runs/photos-1 holds an unfinished run of the same. To go on with it instead:  kawara train photos --out runs/photos-1 --resume"
        in said
    )
    assert "in runs/photos-2" in said  # of the one with the other seed nothing but a trace was there
    status, output = kawara(*command, "--out", "runs/photos-1", "--set", "batch_size=4", "--seed", 3)
    assert status == 2
    assert "batch_size 8 there, 4 asked for; seed 0 there, 3 asked for" in output
    assert "--resume" in output
    status, output = kawara("train", "photos", "--out", "runs/photos-1", "--resume", "--seed", 3)
    assert status == 2
    assert "seed cannot become 3" in output


def test_a_run_does_not_go_on_with_other_images(kawara):
    photos = make_photos(kawara.cwd / "changing")
    kawara.killed("train", "changing", *TRAIN, "--out", "changed", at="last.safetensors", count=2)
    (photos / "red" / "3.png").unlink()
    status, output = kawara("train", "changing", *TRAIN, "--out", "changed")
    assert status == 2
    assert "The images are not those that the run in changed began with." in output


def test_resume_begins_a_run_that_had_not_begun(kawara, whole):
    kawara.killed("train", "photos", *TRAIN, "--out", "early", at="config.yaml", half=True)
    kawara.finished("train", "photos", *TRAIN, "--out", "early", "--resume")
    whole.is_equalled_by(kawara.cwd / "early")


def test_a_folder_in_use_is_left_alone(kawara):
    command = ["train", "photos", *TRAIN, "--out", "busy"]
    kawara.killed(*command, at="last.safetensors", count=2)
    before = files_in(kawara.cwd / "busy")
    with held(kawara.cwd / "busy"):
        status, output = kawara(*command)
    assert status == 2
    assert "Another process is at work in busy" in output
    assert files_in(kawara.cwd / "busy") == before


def test_a_damaged_checkpoint_is_named(kawara):
    kawara.killed("train", "photos", *TRAIN, "--out", "damaged", at="last.safetensors", count=2)
    last = kawara.cwd / "damaged" / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    status, output = kawara("train", "photos", *TRAIN, "--out", "damaged", "--json")
    assert status == 2
    assert "last.safetensors is damaged" in output
    assert json.loads(output.splitlines()[-1])["error"] == "ModelFileError"


@pytest.fixture(scope="module")
def pretrained(kawara) -> str:
    torch.manual_seed(0)
    model = create_model("vit_femto_4", num_classes=3, image_size=16)
    torch.nn.init.normal_(model.head.weight)
    card = ModelCard("vit_femto_4", model.config, ("red", "green", "blue"), Preprocessing((16, 16), crop_fraction=1.0))
    save_model(kawara.cwd / "pretrained.safetensors", model.state_dict(), card)
    return "pretrained.safetensors"


@pytest.mark.parametrize("way", ["frozen", "distilled", pytest.param("finetuned", marks=pytest.mark.slow)])
def test_other_ways_to_train_go_on_as_exactly(kawara, pretrained, way):
    more = {
        "frozen": ["--pretrained", pretrained, "--freeze", "backbone"],
        "distilled": ["--teacher", pretrained, "--model", "vit_femto_4", "--image-size", 8, "--distill", "token"],
        "finetuned": ["--pretrained", pretrained, "--freeze", 1, "--set", "optimizer.layer_decay=0.7"],
    }[way]
    command = ["train", "photos", "--steps", 10, "--set", "batch_size=8", "--set", "threads=1", *more]
    kawara.finished(*command, "--out", f"{way}-whole")
    kawara.killed(*command, "--out", f"{way}-killed", at="last.safetensors", count=4)
    kawara.killed(*command, "--out", f"{way}-killed", at="last.safetensors", count=3, half=True)
    kawara.finished(*command, "--out", f"{way}-killed")
    Whole(kawara.cwd / f"{way}-whole").is_equalled_by(kawara.cwd / f"{way}-killed")


def test_a_run_does_not_go_on_with_another_teacher(kawara, pretrained):
    (kawara.cwd / "teacher.safetensors").write_bytes((kawara.cwd / pretrained).read_bytes())
    command = ["train", "photos", *TRAIN, "--teacher", "teacher.safetensors", "--out", "taught"]
    kawara.killed(*command, at="last.safetensors", count=2)
    torch.manual_seed(1)
    model, card = load_model(kawara.cwd / pretrained)
    torch.nn.init.normal_(model.head.weight)
    save_model(kawara.cwd / "teacher.safetensors", model.state_dict(), card)
    status, output = kawara(*command)
    assert status == 2
    assert "The teacher model is not the one that the run in taught began with." in output


@pytest.mark.slow
def test_an_ablation_goes_on(kawara):
    command = ["ablate", "photos", "--model", "vit_femto_4", "--recipe", "small", "--image-size", 8, "--steps", 10, "--seeds", 1]
    command += ["--set", "batch_size=8", "--without", "muon", "--json"]
    kawara.killed(*command, "--out", "ablation", at="last.safetensors", count=4)
    kawara.killed(*command, "--out", "ablation", at="environment.json")
    kawara.killed(*command, "--out", "ablation", at="ablation.json", half=True)
    again = json.loads(kawara.finished(*command, "--out", "ablation").splitlines()[-1])
    whole = json.loads(kawara.finished(*command, "--out", "ablation-whole").splitlines()[-1])
    assert again["complete"]["top1_of_seeds"] == whole["complete"]["top1_of_seeds"]
    for run in ("complete/seed-0", "without-muon/seed-0"):
        assert weights_hash(kawara.cwd / "ablation" / run) == weights_hash(kawara.cwd / "ablation-whole" / run)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_of_the_command_itself(tmp_path):
    """The same with `python -m kawara` and the clock: three of four times while it trains, else anywhere from its start."""
    draw = random.Random(1)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(kawara_package.__file__).parents[1])}
    command = [sys.executable, "-m", "kawara", "train", str(make_photos(tmp_path / "photos")), *TRAIN, "--steps", "1200", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    kills = 0
    while kills < 20:
        with subprocess.Popen([*command, str(tmp_path / "killed")], env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            if kills % 4:
                assert any("recipe small, 1200 steps" in line for line in process.stderr)
            time.sleep(draw.uniform(0, 1.5))
            if process.poll() is not None:
                break
            process.kill()
        kills += 1
    subprocess.run([*command, str(tmp_path / "killed")], env=environment, check=kills == 20, capture_output=True)
    print(f"{kills} kills")
    assert kills >= 10
    Whole(tmp_path / "whole").is_equalled_by(tmp_path / "killed")
