"""Read a ViT in timm's layout: timm itself, DeiT, DeiT-III, DINO, DINOv2, MAE.

Width, depth, patch, classes, MLP, biases, layer scale, registers and the grid of positions are what the tensors say. The number of heads
they do not say (`architecture.choose_heads`), nor how images are prepared (`origin.py`).

    tensors                                  are
    fc_norm.*                                the norm after pooling: the patches are averaged; `norm` beside it is not used
    no cls_token                             mean pooling
    attn_pool.*                              attention pooling
    mask_token                               dropped: it stands for masked patches in pre-training (DINOv2, MAE)
    decoder_*                                dropped: the decoder of MAE
    head.mlp.*, head.last_layer.*, …         dropped: the projection heads of DINO and DINOv2

LayerNorm has eps 1e-6 and GELU is exact in all of them.
"""

from __future__ import annotations

import re
from math import isqrt
from pathlib import Path
from typing import Any, get_args

import torch

from kawara import models
from kawara.errors import ConfigError, ModelFileError
from kawara.layers.feedforward import Activation
from kawara.models.vit import FinalNorm, Pool, ViTConfig
from kawara.weights.architecture import choose_heads, find_depth, find_grid, variant_name
from kawara.weights.foreign import Foreign, Hints, RawCheckpoint
from kawara.weights.ledger import Ledger
from kawara.weights.timm.names import kawara_name
from kawara.weights.timm.origin import find_origin, find_position_resize, find_preprocessing
from kawara.weights.timm.sidecar import Sidecar

_BLOCK_QKV = re.compile(r"blocks\.(?:[0-9]{1,4}\.)?[0-9]{1,4}\.attn\.qkv\.weight")
_PROJECTION_HEADS = ("head.mlp.", "head.last_layer.", "dino_head.", "ibot_head.")
_VARIANTS = {
    "norm_pre.": "a norm before the first block (CLIP)",
    "rope": "rotary positions (DINOv3, EVA)",
    "relative_position": "relative positions (BEiT, Swin)",
    "rel_pos": "relative positions (SAM, ViTDet)",
    ".q_norm.": "norms on queries and keys",
    "patch_embed.backbone.": "a ResNet before the patches in timm's layout; of hybrids, the .npz files of google-research can be read",
}
_POOLS: dict[str, Pool] = {"token": "class", "avg": "mean", "map": "map"}
_DEFAULT_PX = 224
_OWN_NAME = re.compile(r"(?:vit|deit3?|dino(?:v2)?|mae)_[a-z0-9_]+")


def recognises(checkpoint: RawCheckpoint) -> bool:
    """Say whether the names are those of timm's ViT."""
    return "patch_embed.proj.weight" in checkpoint.tensors and any(_BLOCK_QKV.fullmatch(name) for name in checkpoint.tensors)


def read(checkpoint: RawCheckpoint, hints: Hints) -> Foreign:
    """Understand a checkpoint. Raises ModelFileError: see `kawara.weights.foreign.Format`."""
    for part, what in _VARIANTS.items():
        if found := next((name for name in checkpoint.tensors if part in name), None):
            raise ModelFileError(f"{checkpoint.path} has {what}, which kawara's ViT does not have.", got=found)
    ledger, said, notes = Ledger(checkpoint, kawara_name), Sidecar(checkpoint), list[str]()
    origin = find_origin(checkpoint, said)
    ledger.drop([name for name in ledger if name == "mask_token"], "it stands for masked patches in pre-training")
    ledger.drop([name for name in ledger if name.startswith("decoder_")], "the decoder of masked pre-training; the encoder is taken over")
    ledger.drop([name for name in ledger if name.startswith(_PROJECTION_HEADS)], "the projection head of self-distillation; no classifier")

    width, channels, patch_size = _patch_projection(ledger)
    pool, final_norm = _pooling(ledger, said, notes)
    image_size, prefix = _positions(ledger, said, patch_size)
    mlp_rows, mlp_hidden = ledger.shape("blocks.0.mlp.fc1.weight", 2)[0], ledger.shape("blocks.0.mlp.fc2.weight", 2)[1]
    num_classes = ledger.shape("head.weight", 2)[0] if "head.weight" in ledger else 0
    if not num_classes:
        ledger.drop([name for name in ledger if name.startswith("pre_logits.")], "it leads to a head, and the file has none")
    try:
        config = ViTConfig(
            image_size=image_size,
            channels=channels,
            num_classes=num_classes,
            patch_size=patch_size,
            width=width,
            depth=find_depth(ledger, r"blocks\.([0-9]+)\.", checkpoint.path),
            heads=choose_heads(width, hints.heads, said.whole("num_heads"), checkpoint.path, notes),
            mlp_hidden=mlp_hidden,
            mlp="swiglu" if mlp_rows == 2 * mlp_hidden else "dense",
            activation=_activation(said) if mlp_rows == mlp_hidden else "gelu",
            bias="blocks.0.attn.proj.bias" in ledger,
            class_token="cls_token" in ledger,
            distillation_token="dist_token" in ledger,
            registers=ledger.shape("reg_token", 3)[1] if "reg_token" in ledger else 0,
            pool=pool,
            final_norm=final_norm,
            head_hidden=ledger.shape("pre_logits.weight", 2)[0] if "pre_logits.weight" in ledger else None,
            position="learned" if "pos_embed" in ledger else "none",
            class_position=prefix > 0,
            position_resize=find_position_resize(checkpoint, said, origin),
            layer_scale=(said.number(said.values, "init_values") or 1e-5) if "blocks.0.ls1.gamma" in ledger else None,
        )
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in models.build(config).state_dict().items()}
    except ConfigError as error:
        raise ModelFileError(f"{checkpoint.path} is a ViT that kawara cannot build.", got=error) from None

    _fold_register_positions(ledger, config, prefix)
    for suffix in (".attn.qkv.bias", "patch_embed.proj.bias"):
        biases = [name for name in shapes if name.endswith(suffix)]
        if not any(name in ledger for name in biases):  # where only some are missing, the file is damaged
            for name in biases:
                ledger.fill(name, torch.zeros(shapes[name]), "zero: the model of the file has no bias there")
    ledger.close(shapes)
    return Foreign(
        format="timm",
        name=_name(checkpoint, said, config),
        config=config,
        state=ledger.state,
        fates=ledger.fates,
        preprocessing=find_preprocessing(said, origin, hints, said.input_size() or image_size, channels, notes),
        class_names=said.class_names(num_classes, notes),
        notes=notes,
    )


def _patch_projection(ledger: Ledger) -> tuple[int, int, int]:
    """Use the patch projection, (D, C, P, P) or the (D, C·P·P) of timm's first ViTs, and return D, C and P."""
    name = "patch_embed.proj.weight"
    if ledger.tensor(name).ndim != 2:
        width, channels, height, patch_size = ledger.shape(name, 4)
        if height != patch_size:
            raise ModelFileError(f"The patches of {ledger.path} are not square.", got=f"{height}×{patch_size} px")
        return width, channels, patch_size
    width, inputs = ledger.shape(name, 2)
    patch_size = isqrt(inputs // 3)
    if 3 * patch_size**2 != inputs:
        raise ModelFileError(f"The patches of {ledger.path} are not square ones of three colours.", got=f"{inputs} numbers")
    ledger.use(name, how="reshaped from a linear layer", join=lambda parts: parts[0].reshape(width, 3, patch_size, patch_size))
    return width, 3, patch_size


def _pooling(ledger: Ledger, said: Sidecar, notes: list[str]) -> tuple[Pool, FinalNorm]:
    """Return how tokens are pooled and where the norm is; use `fc_norm`, or drop `norm` beside it."""
    norm_after_pooling = "fc_norm.weight" in ledger
    if norm_after_pooling:
        unused = [name for name in ("norm.weight", "norm.bias") if name in ledger]
        ledger.drop(unused, "not used: the norm comes after pooling (fc_norm)")
        if unused:
            notes.append("The file has a norm before and one after pooling; the one after pooling (fc_norm) is used.")
        for parameter in ("weight", "bias"):
            ledger.use(f"norm.{parameter}", f"fc_norm.{parameter}")
    name = said.text(said.values, "global_pool")
    if name and name not in _POOLS:
        raise ModelFileError(f"{ledger.path} pools its tokens in a way that kawara does not have.", got=name, allowed=", ".join(_POOLS))
    if "attn_pool.latent" in ledger:
        pool = "map"
    elif name and _POOLS[name] != "map":
        pool = _POOLS[name]
    else:
        pool = "class" if "cls_token" in ledger and not norm_after_pooling else "mean"
    return pool, "pooled" if norm_after_pooling else "tokens"


def _positions(ledger: Ledger, said: Sidecar, patch_size: int) -> tuple[tuple[int, int], int]:
    """Return the image size that the table is made for, and how many of its entries are prefix; without a table 224 px."""
    if "pos_embed" not in ledger:
        side_px = max(patch_size, _DEFAULT_PX // patch_size * patch_size)
        return said.position_size() or (side_px, side_px), 0
    tokens = ("cls_token" in ledger) + ("dist_token" in ledger)
    registers = ledger.shape("reg_token", 3)[1] if "reg_token" in ledger else 0
    prefix, grid = find_grid(
        ledger.shape("pos_embed", 3)[1], (0, tokens, tokens + registers), patch_size, said.position_size(), ledger.path
    )
    return (grid[0] * patch_size, grid[1] * patch_size), prefix


def _fold_register_positions(ledger: Ledger, config: ViTConfig, prefix: int) -> None:
    """Add the positions of registers, which kawara's have none of, to the registers: the sum is what the model sees."""
    first = config.num_positioned_prefix
    if prefix <= first or "reg_token" not in ledger:
        return
    table = ledger.tensor("pos_embed").float()
    ledger.use("reg_token", how="their positions added", join=lambda parts: parts[0] + table[:, first:prefix])
    ledger.use(
        "pos_embed",
        how="without the entries of the registers, which were added to these",
        join=lambda parts: torch.cat([parts[0][:, :first], parts[0][:, prefix:]], dim=1),
    )


def _activation(said: Sidecar) -> Activation:
    name: Any = said.text(said.values, "act_layer") or "gelu"
    if name not in get_args(Activation):
        raise ModelFileError(
            f"{said.path} uses an activation that kawara does not have.", got=name, allowed=", ".join(get_args(Activation))
        )
    return name


def _name(checkpoint: RawCheckpoint, said: Sidecar, config: ViTConfig) -> str:
    """Return what kawara, timm or the file calls the model, else kawara's name for its size."""
    stem = Path(checkpoint.path).stem
    return said.text(said.ours, "name") or said.architecture or (stem if _OWN_NAME.fullmatch(stem) else variant_name(config))
