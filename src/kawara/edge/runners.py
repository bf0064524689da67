"""The network alone in each run time, to be timed side by side: normalised images (B, C, H, W) in, logits (B, K) out.

    torch      as it is, fused attention
    compile    torch.compile; wants a C++ compiler
    onnx       ONNX Runtime, on the CPU
    openvino   OpenVINO, on the CPU, in float32

What `kawara export` writes holds the preprocessing as well, and is opened by `open_exported`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from kawara import runtime
from kawara.edge.export import write_network
from kawara.edge.packages import need
from kawara.errors import ConfigError
from kawara.models import ImageModel

RunTime = Literal["torch", "compile", "onnx", "openvino"]
RUN_TIMES: tuple[RunTime, ...] = get_args(RunTime)
_PACKAGES: dict[RunTime, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}
Runner = Callable[[], Any]
"""Answers one batch that it holds."""


def available() -> list[RunTime]:
    """Return the run times whose packages are here."""
    found: list[RunTime] = ["torch", "compile"]
    for name in _PACKAGES:
        with contextlib.suppress(ConfigError):
            for package in _PACKAGES[name]:
                need(package)
            found.append(name)
    return found


class Network:
    """A model in evaluation mode, and its graph on the disk, made when a run time asks for it."""

    def __init__(self, model: ImageModel, folder: Path, stem: str):
        self.model = model.eval()
        self.image_shape: tuple[int, int, int] = (model.config.channels, *model.config.image_size)
        self._file = folder / f"{stem}.onnx"

    def graph(self) -> Path:
        """Return an .onnx file of the network; the batch is free."""
        if not self._file.exists():
            write_network(self.model, self.image_shape, self._file)
        return self._file


def runner(network: Network, name: RunTime, image: np.ndarray, threads: int) -> Runner:
    """Make ready a run time for one batch (B, C, H, W) of float32. Raises ConfigError where it cannot run the network."""
    if name == "torch":
        return _torch_runner(network.model, image, threads)
    if name == "compile":
        return _compiled_runner(network.model, image, threads)
    return graph_runner(network.graph(), name, image, threads)


def graph_runner(file: Path, name: Literal["onnx", "openvino"], image: np.ndarray, threads: int) -> Runner:
    """Make ready a run time for one batch and an .onnx file of `write_network`."""
    if name == "onnx":
        onnxruntime = need("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Threads that wait in a loop for the next call would disturb whoever is timed in between.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"image": image})
    openvino = need("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(str(file), "CPU", settings)
    return lambda: model([image])[0]


def _torch_runner(model: nn.Module, image: np.ndarray, threads: int) -> Runner:
    tensor = torch.from_numpy(image)

    def run() -> Any:
        with runtime.threads(threads), torch.inference_mode():
            return model(tensor)

    return run


def _compiled_runner(model: nn.Module, image: np.ndarray, threads: int) -> Runner:
    torch.compiler.reset()  # the number of threads is compiled in
    compiled = torch.compile(model, dynamic=False)
    run = _torch_runner(compiled, image, threads)  # type: ignore[arg-type]
    try:
        run()
    except Exception as error:  # no compiler, or an operation that it does not know: torch raises many kinds
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ConfigError("torch.compile does not work here.", got=f"{type(error).__name__}: {first}"[:300]) from None
    return run
