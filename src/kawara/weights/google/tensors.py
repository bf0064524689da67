"""Bring the tensors of Flax into the layout of kawara.

The kernels keep the heads as an axis, so nothing has to be guessed:

    query, key, value    (D, M, E)      rows of qkv          stacked, transposed
    out                  (M, E, D)      proj                 transposed
    dense                (in, out)      fc1, fc2, head       transposed
    convolutions         (k, k, C, D)   (D, C, k, k)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kawara.errors import ModelFileError
from kawara.models.vit import ViTConfig
from kawara.weights.ledger import Ledger


def use_outside(ledger: Ledger, config: ViTConfig) -> None:
    """Use what is in no block: patch projection, tokens, positions, last norm, head."""
    ledger.use("patch_embed.proj.weight", "embedding/kernel", how="axes turned", join=_convolution)
    ledger.use("patch_embed.proj.bias", "embedding/bias")
    if config.class_token:
        ledger.use("cls_token", "cls")
    if "positions" in ledger:
        ledger.use("pos_embed", "positions")
    _use_norm(ledger, "norm", "Transformer/encoder_norm")
    for name in ("pre_logits", "head"):
        if f"{name}/kernel" in ledger:
            _use_dense(ledger, name, name)


def use_block(ledger: Ledger, block: int, config: ViTConfig) -> None:
    """Use the tensors of one block of the transformer."""
    target, source = f"blocks.{block}", f"encoder{block}"
    parts = [f"{source}/attention/{part}" for part in ("query", "key", "value")]
    _check_heads(ledger, parts, config)
    ledger.use(f"{target}.attn.qkv.weight", *(f"{part}/kernel" for part in parts), how="query, key and value stacked", join=_stacked)
    ledger.use(f"{target}.attn.qkv.bias", *(f"{part}/bias" for part in parts), how="query, key and value stacked", join=_stacked_biases)
    _use_output(ledger, f"{target}.attn.proj", f"{source}/attention/out")
    for name in ("norm1", "norm2"):
        _use_norm(ledger, f"{target}.{name}", f"{source}/{name}")
    for layer in range(2):
        _use_dense(ledger, f"{target}.mlp.fc{layer + 1}", f"{source}/mlp/Dense_{layer}")


def use_attention_pooling(ledger: Ledger, config: ViTConfig) -> None:
    """Use big_vision's multi-head attention pooling."""
    attention = "MAPHead_0/MultiHeadDotProductAttention_0"
    _check_heads(ledger, [f"{attention}/{part}" for part in ("query", "key", "value")], config)
    ledger.use("attn_pool.latent", "MAPHead_0/probe")
    ledger.use("attn_pool.attn.query.weight", f"{attention}/query/kernel", how="transposed", join=_stacked)
    ledger.use("attn_pool.attn.query.bias", f"{attention}/query/bias", how="flattened", join=_stacked_biases)
    pair = [f"{attention}/{part}" for part in ("key", "value")]
    ledger.use("attn_pool.attn.key_value.weight", *(f"{part}/kernel" for part in pair), how="key and value stacked", join=_stacked)
    ledger.use("attn_pool.attn.key_value.bias", *(f"{part}/bias" for part in pair), how="key and value stacked", join=_stacked_biases)
    _use_output(ledger, "attn_pool.attn.proj", f"{attention}/out")
    _use_norm(ledger, "attn_pool.norm", "MAPHead_0/LayerNorm_0")
    for layer in range(2):
        _use_dense(ledger, f"attn_pool.mlp.fc{layer + 1}", f"MAPHead_0/MlpBlock_0/Dense_{layer}")


def use_resnet(ledger: Ledger, blocks: Sequence[int]) -> None:
    """Use the ResNet of a hybrid; the stages and units of the file count from 1."""
    target = "patch_embed.backbone"
    ledger.use(f"{target}.conv.weight", "conv_root/kernel", how="axes turned", join=_convolution)
    _use_norm(ledger, f"{target}.norm", "gn_root")
    for stage, num_units in enumerate(blocks):
        for unit in range(num_units):
            ours, theirs = f"{target}.stages.{stage}.{unit}", f"block{stage + 1}/unit{unit + 1}"
            for number in (1, 2, 3):
                ledger.use(f"{ours}.conv{number}.weight", f"{theirs}/conv{number}/kernel", how="axes turned", join=_convolution)
                _use_norm(ledger, f"{ours}.norm{number}", f"{theirs}/gn{number}")
            if f"{theirs}/conv_proj/kernel" in ledger:
                ledger.use(f"{ours}.shortcut.0.weight", f"{theirs}/conv_proj/kernel", how="axes turned", join=_convolution)
                _use_norm(ledger, f"{ours}.shortcut.1", f"{theirs}/gn_proj")


def _use_dense(ledger: Ledger, target: str, source: str) -> None:
    ledger.use(f"{target}.weight", f"{source}/kernel", how="transposed", join=lambda parts: parts[0].T)
    ledger.use(f"{target}.bias", f"{source}/bias")


def _use_norm(ledger: Ledger, target: str, source: str) -> None:
    ledger.use(f"{target}.weight", f"{source}/scale", join=lambda parts: parts[0].flatten())  # (1, 1, 1, C) in old hybrids
    ledger.use(f"{target}.bias", f"{source}/bias", join=lambda parts: parts[0].flatten())


def _use_output(ledger: Ledger, target: str, source: str) -> None:
    ledger.use(f"{target}.weight", f"{source}/kernel", how="transposed", join=lambda parts: parts[0].flatten(0, 1).T)
    ledger.use(f"{target}.bias", f"{source}/bias")


def _check_heads(ledger: Ledger, names: Sequence[str], config: ViTConfig) -> None:
    """Raise unless all kernels are cut into heads alike: once flattened, they would fit in any case."""
    expected = config.width, config.heads, config.width // config.heads
    for name in names:
        if (shape := ledger.shape(f"{name}/kernel", 3)) != expected:
            raise ModelFileError(f"The heads in {ledger.path} are not alike.", got=f"{name} {shape}", allowed=expected)


def _stacked(kernels: Sequence[Tensor]) -> Tensor:
    """Return (n·D, D) of n kernels (D, M, E): the rows of each, head after head."""
    return torch.cat([kernel.flatten(1).T for kernel in kernels])


def _stacked_biases(biases: Sequence[Tensor]) -> Tensor:
    return torch.cat([bias.flatten() for bias in biases])


def _convolution(kernels: Sequence[Tensor]) -> Tensor:
    """Return (out, in, height, width) of a kernel (height, width, in, out)."""
    return kernels[0].permute(3, 2, 0, 1)
