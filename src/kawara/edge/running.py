"""Run exported files: raw images (B, H, W, C) of uint8 in, probabilities (B, K) in float32 out.

A file says itself what it is: the JSON text "kawara" of the model file stands in its metadata. Nothing in it is executed but its graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kawara.edge.packages import need
from kawara.errors import ConfigError, DataError, ModelFileError
from kawara.weights.model_file import ModelCard, card_from_json

METADATA_KEY = "kawara"
SUFFIXES = (".onnx", ".xml")
"""Of the files that `open_exported` opens."""

_INT32 = 2**31


class Session(Protocol):
    """An exported model, ready to run."""

    def __call__(self, images_u8: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return probabilities (B, K) for images (B, H, W, C) of one size."""
        ...


class OnnxSession:
    """An .onnx file in ONNX Runtime, on the CPU."""

    def __init__(self, path: str | Path, threads: int | None = None):
        onnxruntime = need("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no base of their own
            raise _unreadable(path, error) from None
        self.metadata: str | None = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)

    def __call__(self, images_u8: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        try:
            return self._session.run(None, {"image": images_u8})[0]
        except Exception as error:
            raise _failed(images_u8, error) from None


class OpenVinoSession:
    """An .xml file with its .bin in OpenVINO, on the CPU, in float32."""

    def __init__(self, path: str | Path, threads: int | None = None):
        openvino = need("openvino")
        core = openvino.Core()
        try:
            model = core.read_model(str(path))
            self.metadata: str | None = model.get_rt_info(METADATA_KEY).astype(str) if model.has_rt_info(METADATA_KEY) else None
            # Asked for, because CPUs with bfloat16 would use that, and grey levels of three digits do not fit into it.
            settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or torch.get_num_threads()}
            self._model = core.compile_model(model, "CPU", settings)
        except Exception as error:
            raise _unreadable(path, error) from None

    def __call__(self, images_u8: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        height, width = images_u8.shape[1:3]
        if 512 * max(height, width) ** 2 // min(height, width) >= _INT32:  # OpenVINO computes in 32 bits what the graph has in 64
            raise DataError(
                "The image is too long and narrow for OpenVINO.", got=f"{height}×{width} px", remedy="the .onnx file, or cut it"
            )
        try:
            return np.array(self._model([images_u8])[0])
        except Exception as error:
            raise _failed(images_u8, error) from None


class ProgramSession:
    """An exported program of torch that is in memory."""

    def __init__(self, program: nn.Module):
        self._program = program

    @torch.inference_mode()
    def __call__(self, images_u8: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return self._program(torch.from_numpy(images_u8)).numpy()


def open_exported(path: str | Path, threads: int | None = None) -> tuple[Session, ModelCard]:
    """Open an .onnx or .xml file of `kawara export`.

    `threads` is by default torch's number. Raises ModelFileError if it cannot be read or is not from kawara, ConfigError where the package
    that runs it is absent.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"There is no model file at {path}.", remedy="the path of a file that `kawara export` wrote")
    session = OnnxSession(path, threads) if path.suffix == ".onnx" else OpenVinoSession(path, threads)
    if session.metadata is None:
        raise ModelFileError(
            f"{path} was not written by kawara: its metadata names neither classes nor preprocessing.",
            remedy="kawara export MODEL, from the model file or checkpoint that it came from",
        )
    return session, card_from_json(session.metadata, path)


def probabilities_of(session: Session, images_u8: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    """Return probabilities (n, K) of images (H, W, C) of any sizes: those of one size run together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images_u8):
        groups.setdefault(image.shape, []).append(index)
    rows: dict[int, Any] = {}
    for indices in groups.values():
        rows |= zip(indices, session(np.stack([images_u8[index] for index in indices])))
    return np.stack([rows[index] for index in range(len(images_u8))])


def refuse_device(device: str | None) -> None:
    """Raise ConfigError for a device other than the CPU."""
    if device not in (None, "cpu"):
        raise ConfigError("Exported files run on the CPU.", got=f"--device {device}", remedy="the model file, for other devices")


def _unreadable(path: str | Path, error: Exception) -> ModelFileError:
    return ModelFileError(f"{path} cannot be read as an exported model.", got=_first_line(error), remedy="export it again")


def _failed(images_u8: npt.NDArray[np.uint8], error: Exception) -> DataError:
    return DataError("The exported model cannot answer for these images.", got=f"{images_u8.shape}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
