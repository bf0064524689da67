"""The same graph with everything in float32: what an int8 graph is timed against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kawara.edge.packages import need


def write_float_twin(graph_file: Path, path: Path) -> None:
    """Write the .onnx file `graph_file` without its rounding: same operators, weights in float32, nothing quantised.

    It answers as the float network does, but for the rounding of weights that has happened already.
    """
    onnx = need("onnx")
    proto = onnx.load(graph_file)
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    quantised = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    instead: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        source, result = node.input[0], node.output[0]
        if source in quantised:
            instead[result] = quantised[source]
        else:
            graph.initializer.append(onnx.numpy_helper.from_array(_weight(onnx, constants, node), result))
    kept = [node for node in graph.node if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    for node in kept:
        for position, name in enumerate(node.input):
            while name in instead:
                name = instead[name]
            node.input[position] = name
    del graph.node[:]
    graph.node.extend(kept)
    path.write_bytes(proto.SerializeToString())


def _weight(onnx: Any, constants: dict[str, Any], node: Any) -> np.ndarray:
    """Return what a DequantizeLinear of constants gives."""
    levels, scales = (onnx.numpy_helper.to_array(constants[name]).astype(np.float32) for name in node.input[:2])
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    return levels * scales.reshape([-1 if i == axis % levels.ndim else 1 for i in range(levels.ndim)])
