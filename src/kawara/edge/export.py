"""Write a model with its whole preprocessing for other run times.

    onnx       one .onnx file; batch, height and width are free; class names, preprocessing and versions in its metadata
    openvino   .xml and .bin, made from the ONNX graph
    torch      .pt2, a program of torch.export (no Python of the model is needed to run it)
    web        a folder with the .onnx file and a page that runs it in a browser (`web`)

Precision "fp16" stores the weights in half precision and computes in float32: half the size, the same speed, and the same answers as
the rounded weights give in torch. "int8" is for networks with layers in int8 (`edge.quantise`), which bring their rounding along.
Traced with a batch of 2: torch takes sizes of 0 and 1 for constants.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kawara.data.preprocessing import Preprocessing
from kawara.edge.graph import ServingGraph
from kawara.edge.packages import need
from kawara.edge.running import METADATA_KEY
from kawara.errors import ConfigError
from kawara.layers.attention import explicit_attention
from kawara.models.interface import ImageModel
from kawara.weights.model_file import ModelCard, card_to_json

Target = Literal["onnx", "openvino", "torch", "web"]
Precision = Literal["fp32", "fp16", "int8"]

SUFFIXES: dict[Target, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2", "web": ""}
OPSET = 20
"""The first that has GELU as one operator."""

_SMALLEST_HALVED = 1024
_MAX_PROTOBUF_BYTES = 2**31 - 2**20


def check_packages(to: Target) -> None:
    """Raise ConfigError, before anything is computed, where a package for `to` is absent."""
    onnx = ("onnx", "onnxscript", "onnxruntime")
    for package in {"onnx": onnx, "openvino": ("onnx", "onnxscript", "openvino"), "torch": (), "web": onnx}[to]:
        need(package)


def trace(model: ImageModel, preprocessing: Preprocessing) -> torch.export.ExportedProgram:
    """Return the graph of a model with its preprocessing, batch, height and width free."""
    graph = ServingGraph(model, preprocessing).eval()
    free = torch.export.Dim.DYNAMIC
    images = torch.zeros((2, 300, 401, preprocessing.channels), dtype=torch.uint8)
    # torch cannot convert its own fused kernel with the bias that merged tokens have.
    attention = explicit_attention(model) if getattr(model.config, "merge", 0) else contextlib.nullcontext()
    with _quiet(), torch.no_grad(), attention:
        try:
            return torch.export.export(graph, (images,), dynamic_shapes=({0: free, 1: free, 2: free},), strict=False)
        except Exception as error:  # torch raises many kinds
            raise _cannot(error) from error


def write_network(model: torch.nn.Module, image_shape: tuple[int, int, int], path: Path) -> None:
    """Write the network alone for images (C, H, W) as they enter it: "image" (batch, C, H, W) to "logits" (batch, K), the batch free."""
    need("onnx")
    need("onnxscript")
    images = torch.zeros((2, *image_shape))
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
            converted = torch.onnx.export(
                program, dynamo=True, input_names=["image"], output_names=["logits"], opset_version=OPSET, verbose=False
            )
        except Exception as error:  # torch raises many kinds
            raise _cannot(error) from error
    assert converted is not None
    path.write_bytes(converted.model_proto.SerializeToString())


def write_torch(program: torch.export.ExportedProgram, card: ModelCard, path: Path) -> None:
    """Write a .pt2 archive; the card is its extra file "kawara"."""
    torch.export.save(program, path, extra_files={METADATA_KEY: card_to_json(card)})


def write_onnx(program: torch.export.ExportedProgram, card: ModelCard, path: Path, precision: Precision = "fp32") -> None:
    """Write one .onnx file. Raises ConfigError for a model that does not fit into one."""
    onnx = need("onnx")
    need("onnxscript")
    with _quiet():
        try:
            converted = torch.onnx.export(
                program, dynamo=True, input_names=["image"], output_names=["probabilities"], opset_version=OPSET, verbose=False
            )
        except Exception as error:
            raise _cannot(error) from error
    assert converted is not None
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if num_bytes > _MAX_PROTOBUF_BYTES:
        raise ConfigError("The model does not fit into one .onnx file.", got=f"{num_bytes:,} bytes", allowed="2 GB", remedy="--to torch")
    proto = converted.model_proto
    _name_axes(proto.graph)
    _forget_sources(proto)
    if precision == "fp16":
        _halve_weights(onnx, proto.graph)
    onnx.helper.set_model_props(proto, {METADATA_KEY: card_to_json(card), "kawara_versions": json.dumps(_versions())})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def write_openvino(onnx_file: Path, card: ModelCard, path: Path, precision: Precision = "fp32") -> None:
    """Turn an .onnx file of `write_onnx` (fp32) into `path` (.xml) and the .bin beside it."""
    openvino = need("openvino")
    try:
        model = openvino.convert_model(str(onnx_file))
    except Exception as error:
        raise _cannot(error) from error
    model.set_rt_info(json.dumps(json.loads(card_to_json(card))), METADATA_KEY)  # in ASCII, which no reader of XML can spoil
    model.set_rt_info(json.dumps(_versions()), "kawara_versions")
    openvino.save_model(model, str(path), compress_to_fp16=precision == "fp16")


def _name_axes(graph: Any) -> None:
    """Call the free axes by names in place of torch's symbols."""
    for value, names in ((graph.input[0], ("batch", "height", "width")), (graph.output[0], ("batch",))):
        for axis, name in zip(value.type.tensor_type.shape.dim, names):
            axis.dim_param = name


def _forget_sources(proto: Any) -> None:
    """Take out what tells of the machine that exported: lines of source code with paths, and shapes in torch's symbols."""
    graph = proto.graph
    del graph.value_info[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _halve_weights(onnx: Any, graph: Any) -> None:
    """Store large float32 weights in half precision, and cast them back in front of their use."""
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _SMALLEST_HALVED:
            continue
        name = tensor.name
        with np.errstate(over="ignore"):  # too large becomes infinite, which the certificate refuses
            halved = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(halved, f"{name}.fp16"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.fp16"], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("kawara", "torch", "onnx", "onnxscript", "onnxruntime", "openvino"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _cannot(error: Exception) -> ConfigError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return ConfigError("The model cannot be exported.", got=f"{type(error).__name__}: {lines[-1] if lines else ''}"[:400])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own inner workings off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
