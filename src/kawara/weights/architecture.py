"""What the tensors of a ViT say about its architecture, and what has to be assumed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import isqrt

from kawara.errors import ModelFileError
from kawara.models import MODELS
from kawara.models.vit import ViTConfig

KNOWN_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16, 1792: 16}
"""Width to heads of the published sizes: Ti, S, B, L, So400m, H, g, DINOv2's g, G, e (arXiv 2010.11929; big_vision `decode_variant`)."""

_USUAL_HEAD_WIDTHS = (64, 32, 16)
_SIZES = ("width", "depth", "heads", "mlp_hidden", "patch_size", "stem")


def find_depth(names: Iterable[str], pattern: str, path: str) -> int:
    """Return how many blocks there are: `pattern` matches the beginning of names of blocks and gives their number, from 0."""
    blocks = {int(match[1]) for name in names if (match := re.match(pattern, name))}
    if blocks != set(range(len(blocks))) or not blocks:
        raise ModelFileError(f"{path} lacks some blocks.", got=f"{len(blocks)} blocks", remedy="a complete copy of the checkpoint")
    return len(blocks)


def choose_heads(width: int, asked: int | None, said: int | None, path: str, notes: list[str]) -> int:
    """Return the number of heads: what the user asks, else what the sidecar says, else that of the published size, else a guess.

    A guess is noted. Raises ModelFileError where it does not divide the width, or nothing can be guessed.
    """
    heads = next((number for number in (asked, said, KNOWN_HEADS.get(width)) if number is not None), None)
    if heads is None:
        head_width = next((size for size in _USUAL_HEAD_WIDTHS if width % size == 0), None)
        if head_width is None:
            raise ModelFileError(f"{path} does not say how many heads it has.", got=f"width {width}", remedy="kawara convert … --heads N")
        heads = width // head_width
        notes.append(
            f"The number of heads is not in the file: {heads}, each {head_width} wide, is assumed. kawara convert --heads N changes it."
        )
    if heads < 1 or width % heads:
        raise ModelFileError(f"The heads of {path} do not divide its width of {width}.", got=heads, remedy="kawara convert … --heads N")
    return heads


def find_grid(
    entries: int, prefixes: Iterable[int], patch_size: int, image_size: tuple[int, int] | None, path: str
) -> tuple[int, tuple[int, int]]:
    """Return how many of the `entries` of a position table are prefix, one of `prefixes`, and the grid (h, w) of the others.

    The grid is that of `image_size`, where it is known and fits, else the square one.
    """
    prefixes = list(prefixes)
    if image_size is not None:
        grid = image_size[0] // patch_size, image_size[1] // patch_size
        for prefix in prefixes:
            if entries == prefix + grid[0] * grid[1]:
                return prefix, grid
    for prefix in prefixes:
        side = isqrt(max(0, entries - prefix))
        if side and prefix + side**2 == entries:
            return prefix, (side, side)
    raise ModelFileError(
        f"The position table of {path} is that of no square image.",
        got=f"{entries} entries",
        allowed=" or ".join(f"{prefix} + a square" for prefix in sorted(set(prefixes))),
        remedy='a .json of the same name beside it that says {"img_size": [height, width]}',
    )


def variant_name(config: ViTConfig) -> str:
    """Return kawara's own name for an architecture of this size, "vit" where it has none."""
    for name in MODELS:
        if all(getattr(MODELS[name].config, size, None) == getattr(config, size) for size in _SIZES):
            return name
    return "vit"
