"""RandAugment, arXiv 1909.13719, in the form DeiT uses (timm's `rand-m9-mstd0.5-inc1`).

Each image gets `num_ops` operations drawn uniformly with replacement from fifteen, each of which is applied with probability p at a
magnitude of its own, N(m, mstd) cut to [0, mmax].

Differs from the paper: 15 operations instead of 14, magnitudes out of 10 with a spread, a probability for each operation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kawara.data import color_ops, point_ops, warp
from kawara.data.grouping import Operation, apply_in_groups
from kawara.data.preprocessing import Interpolation
from kawara.data.randomness import Floats, Indices, box_muller
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
_COLOR_OPERATIONS: dict[str, Operation] = {
    "AutoContrast": point_ops.auto_contrast,
    "Equalize": point_ops.equalize,
    "Invert": point_ops.invert,
    "Posterize": point_ops.posterize,
    "Solarize": point_ops.solarize,
    "SolarizeAdd": point_ops.solarize_add,
    "Color": color_ops.saturation,
    "Contrast": point_ops.contrast,
    "Brightness": point_ops.brightness,
    "Sharpness": color_ops.sharpness,
}
_WARPS = {"Rotate": warp.rotate, "ShearX": warp.shear_x, "ShearY": warp.shear_y}
_GROUPS = (*_COLOR_OPERATIONS, *_WARPS, "Translate")  # operations that run together
_GROUP_OF = np.array([_GROUPS.index(name if name in _GROUPS else name[:-1]) for name in OPERATIONS])
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


def streams(config: RandAugmentConfig) -> dict[str, int]:
    """Say how many uniform numbers of which stream `draw` reads."""
    return {"rand_augment": 4 * config.num_ops, "rand_augment/magnitude": 2 * config.num_ops}


def draw(config: RandAugmentConfig, numbers: Mapping[str, Floats]) -> list[RandAugmentDraw]:
    """Turn the numbers of `streams` into `num_ops` rounds."""
    choices = numbers["rand_augment"].reshape(-1, config.num_ops, 4)
    if config.magnitude_std > _UNIFORM_SPREAD:
        magnitudes = choices[..., 3] * config.magnitude
    else:
        magnitudes = config.magnitude + config.magnitude_std * box_muller(numbers["rand_augment/magnitude"])[:, 0::2]
    magnitudes = magnitudes.clip(0, config.max_magnitude)
    operations = np.where(choices[..., 1] < config.probability, (choices[..., 0] * len(OPERATIONS)).astype(np.int64), -1)
    signs = np.where(choices[..., 2] < 0.5, -1.0, 1.0)
    return [RandAugmentDraw(operations[:, i], magnitudes[:, i], signs[:, i]) for i in range(config.num_ops)]


def rand_augment(
    images: Tensor, config: RandAugmentConfig, rounds: list[RandAugmentDraw], fill: Tensor, interpolation: Interpolation
) -> Tensor:
    """Apply the drawn rounds in place to uint8 (B, C, h, w); `fill` is uint8 (C,)."""
    for drawn in rounds:
        chosen = np.flatnonzero(drawn.operations >= 0)
        groups = _GROUP_OF[drawn.operations[chosen]]
        order = np.argsort(groups, kind="stable")
        members = chosen[order]
        bounds = np.searchsorted(groups[order], np.arange(len(_GROUPS) + 1)).tolist()
        arguments, operations = np.empty((len(members), 2)), []
        for name, start, stop in zip(_GROUPS, bounds, bounds[1:]):
            if start < stop:
                span = slice(start, stop)
                arguments[span] = _arguments(name, drawn, members[span], config.increasing, images.shape[-2:])
                operations.append((span, _operation(name, fill, interpolation)))
        if operations:
            apply_in_groups(images, members, operations, arguments)
    return images


def _arguments(group: str, drawn: RandAugmentDraw, members: Indices, increasing: bool, size: tuple[int, ...]) -> Floats:
    """(m, 1): what each member's operation takes, or (m, 2): the pixels to translate in x and y."""
    magnitudes, signs = drawn.magnitudes[members], drawn.signs[members]
    if group != "Translate":
        return argument(group, magnitudes, signs, increasing)[:, None]
    shares = argument("TranslateX", magnitudes, signs, increasing)
    is_x = drawn.operations[members] == OPERATIONS.index("TranslateX")
    return np.stack((shares * is_x * size[1], shares * ~is_x * size[0]), axis=1)


def _operation(group: str, fill: Tensor, interpolation: Interpolation) -> Operation:
    if group == "Translate":
        return lambda images, arguments: warp.translate(images, arguments, fill)
    if group in _WARPS:
        return lambda images, arguments: _WARPS[group](images, arguments[:, 0], fill, interpolation)
    return lambda images, arguments: _COLOR_OPERATIONS[group](images, arguments[:, 0])
