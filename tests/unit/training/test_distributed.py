from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kawara.data.sharing import Share
from kawara.errors import ConfigError
from kawara.training.distributed import ALONE, World

sys.path.insert(0, str(Path(__file__).parent))
import together

SIZE = 2


def start(*arguments: str, size: int = SIZE) -> None:
    """Run together.py in `size` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(together.__file__)), *arguments],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, "\n".join(errors)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    start(str(folder), "train")
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("one")
    return folder / "run", together.train(ALONE, folder / "run")


def journal(folder: Path, event: str) -> list[dict]:
    records = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return [record for record in records if record["event"] == event]


def test_two_processes_compute_the_gradients_and_statistics_of_one(two):
    found = torch.load(two / "train.pt", weights_only=True)["gradients"]
    expected = together.gradients(ALONE)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-12, rtol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_two_processes_train_what_one_trains(two, one):
    found = torch.load(two / "train.pt", weights_only=True)["weights"]
    for name, value in one[1].items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    for expected, record in zip(journal(one[0], "validation"), journal(two / "run", "validation"), strict=True):
        assert record["step"] == expected["step"]
        assert record["top1"] == pytest.approx(expected["top1"], abs=1e-9)
        assert record["nll"] == pytest.approx(expected["nll"], rel=1e-5)
    assert journal(two / "run", "train")[-1]["loss"] == pytest.approx(journal(one[0], "train")[-1]["loss"], rel=1e-4)


def test_what_two_began_one_ends(two, one):
    assert journal(two / "stopped", "validation")[-1]["step"] == 8
    state = together.train(ALONE, two / "stopped", resume=True)
    for name, value in one[1].items():
        torch.testing.assert_close(state[name], value, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_a_divided_model_is_trained_as_a_whole_one_and_resumed_on_another_number_of_processes(tmp_path):
    expected = together.train(ALONE, tmp_path / "whole", optimizer=together.ADAMW)
    start(str(tmp_path), "shard")
    start(str(tmp_path), "resume", size=3)
    for what in ("shard", "resume"):
        found = torch.load(tmp_path / f"{what}.pt", weights_only=True)["weights"]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, atol=2e-5, rtol=1e-3, msg=lambda text, where=f"{what} {name}": f"{where}: {text}"
            )
    assert [path.suffix for path in (tmp_path / "run" / "checkpoints" / "step-00000020").iterdir()] == [".safetensors"] * 2


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [9, 10, 16, 17])
def test_shares_are_the_batch_cut_in_pairs(batch_size, size):
    rows = [Share(rank, size).rows(batch_size) for rank in range(size)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(batch_size))
    assert max(map(len, rows)) - min(map(len, rows)) <= 3
    for part in rows:
        np.testing.assert_array_equal(batch_size - 1 - part[::-1], part)


def test_a_batch_too_small_to_be_cut_is_refused():
    for rank in range(3):
        assert len(Share(rank, 3).rows(1)) == 1
    with pytest.raises(ConfigError, match="batch_size=8"):
        World(0, 4).share_model(torch.nn.Linear(1, 1), 6)
