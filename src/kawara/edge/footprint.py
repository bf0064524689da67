"""How much memory a graph takes to answer one image in ONNX Runtime or OpenVINO: the growth of a process of its own.

Counted are the session, its weights and activations; not the loading of the libraries. As `kawara.analysis.memory` does for torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np

from kawara.edge.packages import need
from kawara.edge.runners import graph_runner
from kawara.runtime import mark_memory, memory_growth

TIMEOUT_S = 120


def graph_memory_bytes(file: Path, name: Literal["onnx", "openvino"], image_shape: tuple[int, int, int], *, threads: int = 1) -> int | None:
    """Return the peak growth of a process that opens an .onnx file of `write_network` and answers one image; None where that failed."""
    request = json.dumps({"file": str(file), "name": name, "shape": image_shape, "threads": threads})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kawara.edge.footprint"], input=request, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
        return int(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _measure_here(request: dict) -> int:
    need({"onnx": "onnxruntime", "openvino": "openvino"}[request["name"]])
    image = np.zeros((1, *request["shape"]), np.float32)
    before = mark_memory()
    graph_runner(Path(request["file"]), request["name"], image, request["threads"])()
    return memory_growth(before)


if __name__ == "__main__":
    print(_measure_here(json.load(sys.stdin)))
