"""The names of google-research and big_vision, brought to one: blocks are `encoder0/norm1`, `encoder0/attention`, `encoder0/mlp`, …"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from kawara.weights.foreign import RawCheckpoint

ATTENTION = re.compile(r"MultiHeadDotProductAttention_\d/")
_LAYER_AXIS = re.compile(r"(.*Transformer/encoderblock)/(.+)")
_POSITIONS = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding", "pos_embedding")
_NORMS = {"LayerNorm_2/": "norm2/", "LayerNorm_1/": "norm2/", "LayerNorm_0/": "norm1/"}


def find_prefix(checkpoint: RawCheckpoint) -> str:
    """Return what stands before the names of the model: "", "opt/target/", "params/" or "params/img/"."""
    ends = [name.removesuffix("embedding/kernel") for name in checkpoint.tensors if name.endswith("embedding/kernel")]
    return next((end for end in ("params/img/", "params/", "opt/target/", "img/", "") if end in ends), ends[0])


def without_layer_axis(checkpoint: RawCheckpoint) -> RawCheckpoint:
    """Cut the tensors of a scanned model, which hold all blocks, into those of each: `encoderblock/x` to `encoderblock/x[i]`."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        if _LAYER_AXIS.fullmatch(name) and tensor.ndim:
            tensors |= {f"{name}[{index}]": part for index, part in enumerate(tensor)}
        else:
            tensors[name] = tensor
    return replace(checkpoint, tensors=tensors)


def plain_name(name: str, prefix: str) -> str:
    """Return one name for a tensor in whatever layout; what does not begin with `prefix` comes back as it is."""
    if not name.startswith(prefix):
        return name
    plain = name.removeprefix(prefix)
    if match := re.fullmatch(r"Transformer/encoderblock/(.+)\[([0-9]+)\]", plain):
        plain = f"Transformer/encoderblock_{match[2]}/{match[1]}"
    if match := re.fullmatch(r"Transformer/encoderblock_([0-9]{1,4})/(.+)", plain):
        part = ATTENTION.sub("attention/", match[2])
        part = part.replace("MlpBlock_3/", "mlp/").replace("MlpBlock_0/", "mlp/")
        for theirs, ours in _NORMS.items():
            part = part.replace(theirs, ours)
        return f"encoder{int(match[1])}/{part}"
    if plain in _POSITIONS:
        return "positions"
    if plain == "probe" or plain.startswith(("MlpBlock_0/", "MultiHeadDotProductAttention_0/", "LayerNorm_0/")):
        return f"MAPHead_0/{plain}"  # while ViT-G was developed, the pooling was not a module of its own
    return plain
