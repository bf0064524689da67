"""Read a VisionTransformer of torchvision (`vit_b_16`, `vit_l_32`, …).

The tensors do not say how many heads there are. torchvision's own models have heads 64 wide, those of size H 80; another width is divided
into the widest heads of 64, 32 or 16 that fit, and a note says so.

How the published weights were evaluated, from torchvision's own tables:

    ViT-B/16, B/32, L/32 at 224 px    IMAGENET1K_V1   resize 256, crop 224, bilinear
    ViT-L/16 at 224 px                IMAGENET1K_V1   resize 242, crop 224, bilinear
    384, 512, 518 px                  SWAG_E2E_V1     resize to the size itself, bicubic
    ViT-H/14 at 224 px                SWAG_LINEAR_V1  resize 224, crop 224, bicubic

Positions at other sizes: bicubic, the corners of both grids coinciding (`interpolate_embeddings`). LayerNorm has eps 1e-6, GELU is exact.

Source: torchvision 0.28 `models/vision_transformer.py`.
"""

from __future__ import annotations

import re
from math import isqrt

import torch

from kawara import models
from kawara.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from kawara.errors import ConfigError, ModelFileError
from kawara.models.vit import ViTConfig
from kawara.weights.architecture import choose_heads
from kawara.weights.foreign import Foreign, Format, Hints, RawCheckpoint
from kawara.weights.ledger import Ledger

_MODELS = {
    (768, 12, 16): "vit_b_16",
    (768, 12, 32): "vit_b_32",
    (1024, 24, 16): "vit_l_16",
    (1024, 24, 32): "vit_l_32",
    (1280, 32, 14): "vit_h_14",
}
"""(width, depth, patch size) to torchvision's name."""
_UNKNOWN = "torchvision_vit"

_OUTSIDE = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "conv_proj.weight": "patch_embed.proj.weight",
    "conv_proj.bias": "patch_embed.proj.bias",
    "encoder.ln.weight": "norm.weight",
    "encoder.ln.bias": "norm.bias",
    "heads.pre_logits.weight": "pre_logits.weight",
    "heads.pre_logits.bias": "pre_logits.bias",
    "heads.head.weight": "head.weight",
    "heads.head.bias": "head.bias",
}
_IN_BLOCK = {
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj.": "attn.proj.",
    "mlp.0.": "mlp.fc1.",
    "mlp.3.": "mlp.fc2.",
    "mlp.linear_1.": "mlp.fc1.",  # files of torchvision 0.12
    "mlp.linear_2.": "mlp.fc2.",
}
_BLOCK = re.compile(r"encoder\.layers\.encoder_layer_([0-9]{1,4})\.(.+?)(weight|bias)")


def kawara_name(name: str) -> str:
    """Return kawara's name of a tensor of torchvision; one that is not known comes back as it is."""
    if match := _BLOCK.fullmatch(name):
        number, module, parameter = match.groups()
        if module in _IN_BLOCK:
            return f"blocks.{int(number)}.{_IN_BLOCK[module]}{parameter}"
    return _OUTSIDE.get(name, name)


def recognises(checkpoint: RawCheckpoint) -> bool:
    """Say whether the names are those of torchvision's VisionTransformer."""
    return "class_token" in checkpoint.tensors and "encoder.pos_embedding" in checkpoint.tensors


def read(checkpoint: RawCheckpoint, hints: Hints) -> Foreign:
    """Understand a checkpoint. Raises ModelFileError: see `kawara.weights.foreign.Format`."""
    ledger = Ledger(checkpoint, kawara_name)
    _refuse_variants(ledger)
    width, channels, patch_size, other_side = ledger.shape("patch_embed.proj.weight", 4)
    entries = ledger.shape("pos_embed", 3)[1]
    side = isqrt(max(entries - 1, 0))
    if patch_size != other_side or channels not in (1, 3) or side * side != entries - 1:
        raise ModelFileError(
            f"{checkpoint.path} is not a ViT of torchvision.",
            got=f"patches of {patch_size}×{other_side} px with {channels} channels, {entries} positions",
            allowed="square patches and images, 1 or 3 channels",
        )
    notes: list[str] = []
    heads = choose_heads(width, hints.heads, _said_heads(checkpoint), checkpoint.path, notes)
    num_classes = ledger.shape("head.weight", 2)[0] if "head.weight" in ledger else 0
    try:
        config = ViTConfig(
            image_size=(side * patch_size, side * patch_size),
            channels=channels,
            num_classes=num_classes,
            patch_size=patch_size,
            width=width,
            depth=1 + max((int(match[1]) for name in ledger if (match := re.match(r"blocks\.([0-9]+)\.", name))), default=-1),
            heads=heads,
            mlp_hidden=ledger.shape("blocks.0.mlp.fc1.weight", 2)[0],
            head_hidden=ledger.shape("pre_logits.weight", 2)[0] if "pre_logits.weight" in ledger else None,
            position_resize="bicubic-corners",
        )
    except ConfigError as error:
        raise ModelFileError(f"{checkpoint.path} is a model that kawara cannot build.", got=error.what) from None
    with torch.device("meta"):
        ledger.close({name: tuple(tensor.shape) for name, tensor in models.build(config).state_dict().items()})
    name = _MODELS.get((width, config.depth, patch_size), _UNKNOWN)
    return Foreign(
        format="torchvision",
        name=name,
        config=config,
        state=ledger.state,
        fates=ledger.fates,
        preprocessing=_preprocessing(name, config, hints, notes),
        class_names=tuple(str(index) for index in range(num_classes)),
        notes=notes,
    )


def _refuse_variants(ledger: Ledger) -> None:
    """Raise for what torchvision can build and kawara's ViT does not have."""
    if any(name.startswith("conv_proj.conv_bn_relu_") for name in ledger):
        raise ModelFileError(
            f"{ledger.path} has a stem of convolutions of torchvision's own kind.", allowed="one convolution, conv_proj.weight"
        )


def _said_heads(checkpoint: RawCheckpoint) -> int | None:
    """Return what a .json beside the weights says."""
    said = next((checkpoint.config[name] for name in ("num_heads", "heads") if name in checkpoint.config), None)
    if said is not None and (not isinstance(said, int) or isinstance(said, bool)):
        raise ModelFileError(f"The number of heads beside {checkpoint.path} makes no sense.", got=repr(said)[:80], allowed="a whole number")
    return said


def _preprocessing(name: str, config: ViTConfig, hints: Hints, notes: list[str]) -> Preprocessing:
    """Return how the published weights of this size were evaluated."""
    mean, std = (HALF, HALF) if hints.normalisation == "half" else (IMAGENET_MEAN, IMAGENET_STD)
    if config.channels == 1:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    resize_px, interpolation = 224 / 0.875, "bilinear"
    if name == _UNKNOWN:
        notes.append("The file does not say how its images are prepared: as torchvision does by default (7/8 of the middle, bilinear).")
    elif config.image_size != (224, 224) or name == "vit_h_14":
        resize_px, interpolation = 224, "bicubic"
    else:
        resize_px = 242 if name == "vit_l_16" else 256
        notes.append(
            f"The file does not name its weights: its images are prepared as for IMAGENET1K_V1 (resize {resize_px}, crop 224, bilinear)."
        )
    return Preprocessing(
        config.image_size,
        color="grey" if config.channels == 1 else "rgb",
        resize="crop",
        crop_fraction=224 / resize_px,
        interpolation=interpolation,
        mean=mean,
        std=std,
    )


FORMAT = Format("torchvision", recognises, read)
