"""The names of transformers beside those of kawara.

Files on the hub have the names of transformers 4. Version 5 has others in memory, and translates when it loads and saves; a state that was
saved by hand may have either. Each name may carry the prefix of its model ("vit.", "deit.", …) or not.

    transformers 4                                        transformers 5, in memory     kawara
    encoder.layer.0.attention.attention.query.weight      layers.0.attention.q_proj     blocks.0.attn.query.weight (then stacked as qkv)
    encoder.layer.0.attention.output.dense.weight         layers.0.attention.o_proj     blocks.0.attn.proj.weight
    encoder.layer.0.output.dense.weight                   layers.0.mlp.fc2              blocks.0.mlp.fc2.weight

Sources: transformers 5.23 `conversion_mapping.py`, `modeling_vit.py`, `modeling_deit.py`, `modeling_dinov2.py`.
"""

from __future__ import annotations

import re

PREFIXES = {
    "vit": "vit.",
    "vit_mae": "vit.",
    "vit_msn": "vit.",
    "deit": "deit.",
    "dinov2": "dinov2.",
    "dinov2_with_registers": "dinov2_with_registers.",
}
"""Model type to the prefix of its tensors in models with a head."""

OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
"""transformers to kawara, outside the blocks and the heads."""

_ATTENTION = {
    "attention.attention.query": "attn.query",
    "attention.attention.key": "attn.key",
    "attention.attention.value": "attn.value",
    "attention.output.dense": "attn.proj",
}
VIT_BLOCK = _ATTENTION | {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
"""transformers 4 to kawara, the modules of a block of ViT and DeiT."""

DINOV2_BLOCK = _ATTENTION | {
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
}
"""The same for DINOv2; the parameter of a layer scale is `lambda1` there and `gamma` here."""

SWIGLU_BLOCK = {theirs: ours for theirs, ours in DINOV2_BLOCK.items() if not ours.startswith("mlp.")} | {
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
}
"""The same for DINOv2-g; gate and what it lets through are stacked in this order, as in kawara."""

_NEW_BLOCK = {
    "attention.q_proj": "attn.query",
    "attention.k_proj": "attn.key",
    "attention.v_proj": "attn.value",
    "attention.o_proj": "attn.proj",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.fc2",
}
_BLOCK = VIT_BLOCK | DINOV2_BLOCK | _NEW_BLOCK
_HEADS = {"classifier": "head", "cls_classifier": "head", "distillation_classifier": "head_dist"}

_PREFIX = re.compile("^(?:" + "|".join(re.escape(prefix) for prefix in sorted(set(PREFIXES.values()))) + ")")
_IN_BLOCK = re.compile(r"(?:encoder\.layer|layers)\.([0-9]{1,4})\.(.+)\.(\w+)")


def kawara_name(name: str) -> str:
    """Return kawara's name of a tensor of transformers 4 or 5; one that is not known comes back without its prefix."""
    name = _PREFIX.sub("", name)
    if name in OUTSIDE:
        return OUTSIDE[name]
    if match := _IN_BLOCK.fullmatch(name):
        number, module, parameter = match.groups()
        if module in _BLOCK:
            return f"blocks.{int(number)}.{_BLOCK[module]}.{'gamma' if parameter == 'lambda1' else parameter}"
    module, _, parameter = name.rpartition(".")
    return f"{_HEADS[module]}.{parameter}" if module in _HEADS else name
