"""How much memory a model takes to answer one image: the growth of a process of its own.

A fresh process loads the libraries, notes its resident set, then builds the model and runs one image. What counts is the peak of the
resident set over that mark: weights, activations, and what torch asks for when it first computes (the same for every model on one machine).
On Linux the kernel's high-water mark (VmHWM) is set back before the model is built. Elsewhere it cannot be: the growth of ru_maxrss is
taken, which misses whatever fits into the memory that loading the libraries had used and given back.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch

from kawara.config import from_dict, to_dict
from kawara.models import build, config_type, family_of
from kawara.runtime import mark_memory, memory_growth

TIMEOUT_S = 120


def answering_memory_bytes(config: Any, *, threads: int = 1) -> int | None:
    """Return the peak growth of a process that builds the model and answers one image; None where it could not be measured."""
    request = json.dumps({"family": family_of(config), "config": to_dict(config), "threads": threads})
    command = [sys.executable, "-m", "kawara.analysis.memory"]
    try:
        done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        return int(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _measure_here(request: dict[str, Any]) -> int:
    """Return the growth of this process while it builds the model and answers."""
    config = from_dict(config_type(request["family"]), request["config"])
    torch.set_num_threads(request["threads"])
    before = mark_memory()
    model = build(config).eval()
    with torch.inference_mode():
        model(torch.zeros(1, config.channels, *config.image_size))
    return memory_growth(before)


if __name__ == "__main__":
    print(_measure_here(json.load(sys.stdin)))
