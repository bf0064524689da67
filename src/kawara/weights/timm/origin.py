"""Who trained weights in timm's layout: that decides how images are prepared and how positions are resized.

    origin    colours     crop               positions           source
    vit       0.5         0.9, ≥ 384 px: 1   bicubic-antialias   timm `vision_transformer.py`, `_cfg`
    deit      ImageNet    0.9, ≥ 384 px: 1   bicubic             timm `deit.py` (the authors' code: 0.875); DeiT, arXiv 2012.12877, §6
    deit3     ImageNet    0.9, ≥ 384 px: 1   bicubic             timm `deit.py`
    mae       ImageNet    0.875              bicubic             facebookresearch/mae
    dino      ImageNet    0.875              dinov2-offset       facebookresearch/dino
    dinov2    ImageNet    1                  dinov2-offset       facebookresearch/dinov2; with registers bicubic-antialias

The column of positions holds for the files of the authors; timm resizes those of all origins as its own. Images are resized bicubically.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from kawara.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing
from kawara.errors import ConfigError, ModelFileError
from kawara.layers.position import PositionResize
from kawara.weights.foreign import Hints, RawCheckpoint
from kawara.weights.timm.sidecar import Sidecar


@dataclass(frozen=True)
class Origin:
    """What is common to the weights of one project."""

    name: str
    title: str
    imagenet_colors: bool
    crop_fraction: float
    large_crop_fraction: float
    """From 384 px on."""
    position_resize: PositionResize = "bicubic-antialias"
    """Nothing to a CNN."""
    interpolation: Interpolation = "bicubic"
    """Of images."""


ORIGINS = {
    origin.name: origin
    for origin in (
        Origin("vit", "timm's ViTs", False, 0.9, 1.0, "bicubic-antialias"),
        Origin("deit", "DeiT", True, 0.9, 1.0, "bicubic"),
        Origin("deit3", "DeiT-III", True, 0.9, 1.0, "bicubic"),
        Origin("mae", "MAE", True, 0.875, 0.875, "bicubic"),
        Origin("dino", "DINO", True, 0.875, 0.875, "dinov2-offset"),
        Origin("dinov2", "DINOv2", True, 1.0, 1.0, "dinov2-offset"),
    )
}

_IN_TEXT = {"dinov2": "dinov2", "dino": "dino", "mae": "mae", "deit3": "deit3", "deit_3": "deit3", "deit": "deit"}
"""What names of files and architectures contain; the first that is found counts."""
_LARGE_PX = 384


def find_origin(checkpoint: RawCheckpoint, said: Sidecar) -> Origin:
    """Return who trained the weights: by what the sidecar and the file are called, else by what only one project's files hold."""
    tag = said.text(said.pretrained, "tag")
    text = " ".join(filter(None, (said.architecture, tag, Path(checkpoint.path).stem))).lower()
    names = set(checkpoint.tensors)
    for word, origin in _IN_TEXT.items():
        if re.search(rf"(?<![a-z]){word}(?![a-z])", text):
            return ORIGINS[origin]
    if _is_dinov2(names):
        return ORIGINS["dinov2"]
    if checkpoint.wrapper == "teacher" or any(name.startswith("head.last_layer.") for name in names):
        return ORIGINS["dino"]
    if any(name.startswith("decoder_") for name in names) or (checkpoint.wrapper == "model" and "head.weight" not in names):
        return ORIGINS["mae"]
    if any(name.endswith(".gamma_1") for name in names):
        return ORIGINS["deit3"]
    if "dist_token" in names or checkpoint.wrapper == "model":
        return ORIGINS["deit"]
    return ORIGINS["vit"]


def find_position_resize(checkpoint: RawCheckpoint, said: Sidecar, origin: Origin) -> PositionResize:
    """Return how positions are resized: as kawara wrote, else as the project does whose file it is, the authors' or timm's."""
    ours = said.text(said.ours, "position_resize")
    for method in get_args(PositionResize):
        if method == ours:
            return method
    names = set(checkpoint.tensors)
    by_authors = checkpoint.wrapper is not None or _is_dinov2(names) or Path(checkpoint.path).stem.lower().startswith("dino")
    has_registers = "register_tokens" in names or "reg_token" in names
    if said.architecture is not None or not by_authors or (origin.name == "dinov2" and has_registers):
        return "bicubic-antialias"
    return origin.position_resize


def find_preprocessing(
    said: Sidecar, origin: Origin, hints: Hints, image_size: tuple[int, int], channels: int, notes: list[str]
) -> Preprocessing:
    """Return how images are prepared: as the sidecar says, else as usual for weights of this origin, with a note."""
    if channels not in (1, 3):
        raise ModelFileError(f"{said.path} takes images of {channels} channels.", allowed="1 (grey) or 3 (RGB)")
    imagenet = origin.imagenet_colors if hints.normalisation is None else hints.normalisation == "imagenet"
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else (HALF, HALF)
    if channels == 1:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    said_mean, said_std = said.numbers("mean", channels), said.numbers("std", channels)
    if said_mean is None or said_std is None:
        if hints.normalisation is None:
            colors = "ImageNet's mean and deviation" if imagenet else "mean and deviation 0.5"
            change = "kawara convert --normalise imagenet or half changes it."
            notes.append(f"How images are prepared is assumed, as for {origin.title}: {colors}. {change}")
    elif hints.normalisation is None:
        mean, std = said_mean, said_std
    usual_crop = origin.large_crop_fraction if min(image_size) >= _LARGE_PX else origin.crop_fraction
    crop_fraction = said.number(said.pretrained, "crop_pct")
    try:
        return Preprocessing(
            image_size=image_size,
            color="grey" if channels == 1 else "rgb",
            resize="squash" if said.text(said.pretrained, "crop_mode") == "squash" else "crop",
            crop_fraction=usual_crop if crop_fraction is None else crop_fraction,
            interpolation=_interpolation(said, origin, notes),
            mean=mean,
            std=std,
        )
    except ConfigError as error:
        raise ModelFileError(f"The .json beside {said.path} says something impossible about images.", got=error) from None


def _interpolation(said: Sidecar, origin: Origin, notes: list[str]) -> Interpolation:
    name = said.text(said.pretrained, "interpolation")
    if name == "bilinear" or name == "bicubic":
        return name
    if name is not None:
        notes.append(f"The .json beside the file asks for {name} interpolation of images; kawara takes {origin.interpolation}.")
    return origin.interpolation


def _is_dinov2(names: Iterable[str]) -> bool:
    return any(name in ("mask_token", "register_tokens") or name.endswith(".mlp.w12.weight") for name in names) and not any(
        name.startswith("decoder_") for name in names
    )
