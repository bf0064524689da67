"""timm's names of tensors, those of the projects that took them over, and kawara's.

kawara's own names are timm's (`models/vit.py`). What differs:

    kawara                      timm                      others
    blocks.i.                                             blocks.chunk.i.              DINOv2, trained in chunks
    blocks.i.ls1.gamma                                    blocks.i.gamma_1             DeiT-III
    blocks.i.mlp.fc1, fc2       (SwiGLU: packed)          blocks.i.mlp.w12, w3         DINOv2-g
    reg_token                                             register_tokens              DINOv2
    norm                        fc_norm                                                where the norm comes after pooling
    pre_logits                                            pre_logits.fc                timm before 0.6
    attn_pool.attn.query        attn_pool.q
    attn_pool.attn.key_value    attn_pool.kv
    attn_pool.attn.proj         attn_pool.proj
"""

from __future__ import annotations

import re

_BLOCK = re.compile(r"blocks\.(?:[0-9]{1,4}\.)?([0-9]{1,4})\.(.+)")
_IN_BLOCK = {
    "gamma_1": "ls1.gamma",
    "gamma_2": "ls2.gamma",
    "mlp.w12.weight": "mlp.fc1.weight",
    "mlp.w12.bias": "mlp.fc1.bias",
    "mlp.w3.weight": "mlp.fc2.weight",
    "mlp.w3.bias": "mlp.fc2.bias",
}
_OUTSIDE = {"register_tokens": "reg_token", "pre_logits.fc.weight": "pre_logits.weight", "pre_logits.fc.bias": "pre_logits.bias"}
_POOLING = {
    "attn_pool.q.": "attn_pool.attn.query.",
    "attn_pool.kv.": "attn_pool.attn.key_value.",
    "attn_pool.proj.": "attn_pool.attn.proj.",
}


def kawara_name(name: str) -> str:
    """Return kawara's name of a tensor; `fc_norm` and names that are not known come back as they are."""
    if match := _BLOCK.fullmatch(name):
        return f"blocks.{int(match[1])}.{_IN_BLOCK.get(match[2], match[2])}"
    for theirs, ours in _POOLING.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return _OUTSIDE.get(name, name)


def timm_name(name: str, *, norm_after_pooling: bool) -> str:
    """Return timm's name of a tensor of kawara."""
    for theirs, ours in _POOLING.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return f"fc_{name}" if norm_after_pooling and name.startswith("norm.") else name
