"""`kawara train --devices N`: start N processes of the same command, watch them, and end the rest when one ends.

Each is told its number as `torchrun` would tell it (see `distributed`). The first one speaks to the person; what the others say on stderr
is kept, and shown if one of them is the first to fail.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import IO

import torch

from kawara.data.pools import num_cores
from kawara.errors import ConfigError, ProcessLostError, UserError
from kawara.runtime import choose_device
from kawara.training.distributed import is_one_of_many

STARTED_HERE = "KAWARA_STARTED_BY_DEVICES"
"""Set in processes whose starter tells the person how they ended."""

GRACE_S = 3.0
"""How long the others may take to end by themselves once one has failed."""

_LAST_WORDS_BYTES = 4000
_INTERRUPTED = 130


class ProcessFailedError(UserError):
    """A process of a training has ended before the training did."""


@dataclass
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    words: IO[bytes] | None


def is_to_be_launched(num_processes: int | None) -> bool:
    """Tell whether `--devices` asks for processes still to be started. Raises ConfigError where another launcher has started some."""
    if num_processes is None or STARTED_HERE in os.environ:
        return False
    if is_one_of_many():
        raise ConfigError("--devices starts processes, and torchrun has started some.", remedy="--nproc-per-node of torchrun alone")
    return num_processes != 1


def launch(arguments: Sequence[str], num_processes: int, *, device: str | None) -> int:
    """Run `kawara` with `arguments` in `num_processes` processes of this machine and return the exit code of the first.

    Raises ConfigError for a number that the machine does not have, ProcessFailedError, naming the process, where one ended early.
    """
    _check(num_processes, device)
    port = _free_port()
    with contextlib.ExitStack() as stack:
        workers = [_start(arguments, rank, num_processes, port, stack) for rank in range(num_processes)]
        with _passing_signals_on(workers):
            failed = _first_to_fail(workers)
        if failed is None:
            return 0
        code = failed.process.returncode
        codes = {worker.process.returncode for worker in workers}
        if (failed.rank == 0 and code > 0) or (codes <= {code, ProcessLostError.exit_code} and code == _INTERRUPTED):
            return code  # the first process has said why
        raise ProcessFailedError(
            f"Process {failed.rank} of {num_processes} {_ending(code)}; the others were ended.",
            got=_last_words(failed) if code > 0 else None,
            remedy="the same command with --resume goes on from the last checkpoint, on as many processes as you like",
        )


def _check(num_processes: int, device: str | None) -> None:
    if num_processes < 1:
        raise ConfigError("--devices is at least 1.", got=num_processes)
    if choose_device(device).type == "cuda" and num_processes > torch.cuda.device_count():
        raise ConfigError("--devices is more than there are GPUs.", got=num_processes, allowed=f"up to {torch.cuda.device_count()}")


def _start(arguments: Sequence[str], rank: int, size: int, port: int, stack: contextlib.ExitStack) -> _Worker:
    words = None if rank == 0 else stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  the stack closes it
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, STARTED_HERE: 1}
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, num_cores() // size))
    process = subprocess.Popen(
        [sys.executable, "-m", "kawara", *arguments],
        env=os.environ | {name: str(value) for name, value in place.items()} | {"OMP_NUM_THREADS": threads},
        stdout=None if rank == 0 else subprocess.DEVNULL,
        stderr=words,
        start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on: once each
    )
    return _Worker(rank, process, words)


def _first_to_fail(workers: list[_Worker]) -> _Worker | None:
    """Wait for all, ending the rest once one has failed. Return the one that failed first for a reason of its own, None if none did."""
    failed: list[_Worker] = []
    deadline = None
    while any(worker.process.poll() is None for worker in workers):
        failed += [worker for worker in workers if worker.process.poll() and worker not in failed]
        if failed and deadline is None:
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            for worker in workers:
                worker.process.kill()
        time.sleep(0.05)
    failed += [worker for worker in workers if worker.process.returncode and worker not in failed]
    own_reason = [worker for worker in failed if worker.process.returncode != ProcessLostError.exit_code]
    return next(iter(own_reason or failed), None)


@contextlib.contextmanager
def _passing_signals_on(workers: list[_Worker]) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.send_signal(number)

    numbers = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for worker in workers:
            worker.process.kill()
            worker.process.wait()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by signal {-code} ({name}{', which the system sends where memory runs out' if name == 'SIGKILL' else ''})"


def _last_words(worker: _Worker) -> str | None:
    if worker.words is None:
        return None
    worker.words.seek(max(0, worker.words.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
    return worker.words.read().decode(errors="replace").strip() or None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
