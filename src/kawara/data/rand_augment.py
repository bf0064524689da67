"""RandAugment, arXiv 1909.13719, in the form DeiT uses (timm's `rand-m9-mstd0.5-inc1`).

Each image gets `num_ops` operations drawn uniformly with replacement from fifteen, each of which is applied with probability p at a
magnitude of its own, N(m, mstd) cut to [0, mmax].

Differs from the paper: 15 operations instead of 14, magnitudes out of 10 with a spread, a probability for each operation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kawara.data import color_ops, point_ops, warp
from kawara.data.preprocessing import Interpolation
from kawara.data.randomness import Floats, Indices, normal, uniform
from kawara.errors import ConfigError

OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
_POINT_OPS: dict[str, point_ops.TableBuilder] = {
    "AutoContrast": point_ops.auto_contrast,
    "Equalize": point_ops.equalize,
    "Invert": point_ops.invert,
    "Posterize": point_ops.posterize,
    "Solarize": point_ops.solarize,
    "SolarizeAdd": point_ops.solarize_add,
    "Contrast": point_ops.contrast,
    "Brightness": point_ops.brightness,
}
_COLOR_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"Color": color_ops.saturation, "Sharpness": color_ops.sharpness}
_WARPS: dict[str, Callable[[Tensor, Tensor, Tensor, Interpolation], Tensor]] = {
    "Rotate": warp.rotate,
    "ShearX": warp.shear_x,
    "ShearY": warp.shear_y,
    "TranslateX": warp.translate_x,
    "TranslateY": warp.translate_y,
}
_CHUNK_BYTES = 1 << 18
_UNIFORM_SPREAD = 100.0


@dataclass(frozen=True)
class RandAugmentConfig:
    """The parts of a RandAugment string; `parse` reads one."""

    magnitude: float = 9.0
    magnitude_std: float = 0.0
    max_magnitude: float = 10.0
    num_ops: int = 2
    probability: float = 0.5
    increasing: bool = False

    @staticmethod
    def parse(text: str) -> RandAugmentConfig:
        """Read timm's notation: `m9-mstd0.5-inc1`, with n (operations), p (probability), mmax where wanted; a leading `rand-` is allowed.

        A spread above 100 means magnitudes uniform in [0, m], as there.
        """
        values: dict[str, float] = {}
        for part in text.removeprefix("rand-").split("-"):
            match = re.fullmatch(r"(mstd|mmax|m|n|p|inc)(\d+(?:\.\d+)?)", part)
            if match is None or match[1] in values:
                raise ConfigError(
                    f"The RandAugment setting {text!r} cannot be read.",
                    got=part,
                    allowed="m, mstd, mmax, n, p, inc, each once and followed by a number, joined by '-'",
                    remedy="m9-mstd0.5-inc1",
                )
            values[match[1]] = float(match[2])
        config = RandAugmentConfig(
            magnitude=values.get("m", 9.0),
            magnitude_std=values.get("mstd", 0.0),
            max_magnitude=values.get("mmax", 10.0),
            num_ops=int(values.get("n", 2)),
            probability=values.get("p", 0.5),
            increasing=bool(values.get("inc", 0)),
        )
        if not (0 <= config.probability <= 1 and config.num_ops >= 1 and 0 <= config.magnitude <= config.max_magnitude <= 10):
            raise ConfigError(f"The RandAugment setting {text!r} is out of range.", allowed="0 ≤ p ≤ 1, n ≥ 1, 0 ≤ m ≤ mmax ≤ 10")
        return config


def argument(operation: str, magnitude: Floats, sign: Floats, increasing: bool) -> Floats:
    """Turn magnitudes 0 … 10 into what the operation takes: degrees, bits, threshold, amount, factor, slope or share of the side."""
    level = np.asarray(magnitude, dtype=np.float64) / 10
    if operation in ("AutoContrast", "Equalize", "Invert"):
        return np.zeros_like(level)
    if operation == "Rotate":
        return sign * 30 * level
    if operation == "Posterize":
        kept = np.trunc(level * 4)
        return 4 - kept if increasing else kept
    if operation == "Solarize":
        threshold = np.minimum(256, np.trunc(level * 256))
        return 256 - threshold if increasing else threshold
    if operation == "SolarizeAdd":
        return np.minimum(128, np.trunc(level * 110))
    if operation in ("Color", "Contrast", "Brightness", "Sharpness"):
        return np.maximum(0.1, 1 + sign * 0.9 * level) if increasing else level * 1.8 + 0.1
    if operation in ("ShearX", "ShearY"):
        return sign * 0.3 * level
    assert operation in ("TranslateX", "TranslateY"), operation
    return sign * 0.45 * level


@dataclass(frozen=True)
class RandAugmentDraw:
    """One round: the operation of each image (an index into OPERATIONS, −1 for none), its magnitude and its sign."""

    operations: Indices
    magnitudes: Floats
    signs: Floats


def draw(config: RandAugmentConfig, *, seed: int, epoch: int, indices: Indices) -> list[RandAugmentDraw]:
    """Draw `num_ops` rounds for images `indices`."""
    draws = uniform(seed, epoch, indices, "rand_augment", 4 * config.num_ops).reshape(len(indices), config.num_ops, 4)
    if config.magnitude_std > _UNIFORM_SPREAD:
        magnitudes = draws[..., 3] * config.magnitude
    elif config.magnitude_std > 0:
        magnitudes = config.magnitude + config.magnitude_std * normal(seed, epoch, indices, "rand_augment/magnitude", config.num_ops)
    else:
        magnitudes = np.full(draws.shape[:2], config.magnitude)
    magnitudes = magnitudes.clip(0, config.max_magnitude)
    operations = np.where(draws[..., 1] < config.probability, (draws[..., 0] * len(OPERATIONS)).astype(np.int64), -1)
    signs = np.where(draws[..., 2] < 0.5, -1.0, 1.0)
    return [RandAugmentDraw(operations[:, i], magnitudes[:, i], signs[:, i]) for i in range(config.num_ops)]


def rand_augment(
    images: Tensor, config: RandAugmentConfig, fill: Tensor, interpolation: Interpolation, *, seed: int, epoch: int, indices: Indices
) -> Tensor:
    """Apply RandAugment in place to uint8 (B, C, h, w). Each image's result depends on (seed, epoch, its index) alone."""
    for drawn in draw(config, seed=seed, epoch=epoch, indices=indices):
        apply_round(images, drawn, config.increasing, fill, interpolation)
    return images


def apply_round(images: Tensor, drawn: RandAugmentDraw, increasing: bool, fill: Tensor, interpolation: Interpolation) -> None:
    """Apply one operation to each image, in place: the images that drew the same operation go through it together."""
    order = np.argsort(drawn.operations, kind="stable")
    bounds = np.searchsorted(drawn.operations[order], np.arange(len(OPERATIONS) + 1))
    names = [OPERATIONS[i] for i in range(len(OPERATIONS)) if bounds[i] < bounds[i + 1]]
    if not names:
        return
    spans = {name: slice(bounds[OPERATIONS.index(name)], bounds[OPERATIONS.index(name) + 1]) for name in names}
    values = np.zeros(len(order))
    for name, span in spans.items():
        members = order[span]
        values[span] = argument(name, drawn.magnitudes[members], drawn.signs[members], increasing)
    places = torch.from_numpy(order).to(images.device, non_blocking=True)
    arguments = torch.from_numpy(values).to(images.device, non_blocking=True)

    point_groups = [(places[span], _POINT_OPS[name], arguments[span]) for name, span in spans.items() if name in _POINT_OPS]
    _apply_tables(images, point_groups)
    for name in names:
        if name in _COLOR_OPS:
            operation = _COLOR_OPS[name]
            apply_in_place(images, places[spans[name]], lambda x, y, f=operation: f(x, y), arguments[spans[name]])
        elif name in _WARPS:
            operation = _WARPS[name]
            apply_in_place(images, places[spans[name]], lambda x, y, f=operation: f(x, y, fill, interpolation), arguments[spans[name]])


def apply_in_place(images: Tensor, places: Tensor, operation: Callable[[Tensor, Tensor], Tensor], arguments: Tensor) -> None:
    """Put operation(images[places], arguments) back; on a CPU in pieces that stay in the cache."""
    step = len(places) if images.device.type != "cpu" else max(1, _CHUNK_BYTES // images[0].numel())
    for start in range(0, len(places), step):
        piece = places[start : start + step]
        if len(piece) == 1 and images.device.type == "cpu":
            place = int(piece[0])
            images[place] = operation(images[place : place + 1], arguments[start : start + 1])[0]
        else:
            images.index_copy_(0, piece, operation(images.index_select(0, piece), arguments[start : start + step]).contiguous())


def _apply_tables(images: Tensor, groups: list[tuple[Tensor, point_ops.TableBuilder, Tensor]]) -> None:
    """Look all point operations up together where images are small; one group at a time where they are not."""
    if not groups:
        return
    if images.device.type == "cpu" and images[0].numel() > _CHUNK_BYTES // 8:
        for places, build, arguments in groups:
            apply_in_place(images, places, lambda x, y, f=build: point_ops.look_up(x, f(x, y)), arguments)
        return
    channels = images.shape[1]
    tables = torch.cat([build(images.index_select(0, places), values).expand(-1, channels, -1) for places, build, values in groups])
    places = torch.cat([places for places, _, _ in groups])
    images.index_copy_(0, places, point_ops.look_up(images.index_select(0, places), tables))
