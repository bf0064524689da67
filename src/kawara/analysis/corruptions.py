"""Ways to spoil an image, by name and strength, the same on every run.

Every random choice depends on (seed, draw, number of the image, name) alone: not on the batch, the device, or the strength. So a stronger
drop contains the weaker one, and two models are shown the very same pixels.

    drop_random        tiles painted black, chosen at random        Naseer et al., arXiv 2105.10497, §3.1 (PatchDrop)
    drop_salient       the most salient tiles painted black
    drop_non_salient   the least salient tiles painted black
    shuffle            tiles put in a random order                  the same, §3.3
    shift              moved in a random direction, mirrored at the border
    noise              Gaussian, clipped to [0, 1]
    blur               Gaussian

Black is black before normalisation. Differs from the paper's code: each image of a batch loses tiles of its own, and the salient drops take
a share of the tiles, not of the attention.

Axes: B batch, C channels, H W pixels, h w tiles.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kawara.errors import ConfigError, UnknownNameError

Unit = Literal["share_of_tiles", "tiles_per_side", "share_of_side", "deviation"]


@dataclass(frozen=True)
class Draw:
    """What the random choices for a batch depend on, and what a drop needs to know."""

    indices: Tensor
    """(B,) int64: numbers of the images in their set."""
    number: int = 0
    seed: int = 0
    tiles: tuple[int, int] = (14, 14)
    """(h, w) of the tiles of the drops."""
    salience: Tensor | None = None
    """(B, any, any): higher is more salient."""

    def generators(self, name: str) -> list[torch.Generator]:
        """Return one generator for each image."""
        words = [f"{name}/{self.seed}/{self.number}/{index}" for index in self.indices.tolist()]
        seeds = [int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") >> 1 for word in words]
        return [torch.Generator().manual_seed(seed) for seed in seeds]


@dataclass(frozen=True)
class Corruption:
    """A way to spoil images, and how much of it is usual."""

    apply: Callable[[Tensor, float, Draw], Tensor]
    """(images (B, C, H, W) in [0, 1], strength, draw) to images in [0, 1]; strength `intact` returns them as they are."""
    unit: Unit
    strengths: tuple[float, ...]
    num_draws: int = 1
    """How often random choices are made anew; 1 where there are none."""
    intact: float = 0.0
    needs_salience: bool = field(default=False, kw_only=True)


def corrupt(image_01: Tensor, name: str, strength: float, draw: Draw) -> Tensor:
    """Return images (B, C, H, W) in [0, 1] spoiled. Raises UnknownNameError, and ConfigError for a strength out of range."""
    if name not in CORRUPTIONS:
        raise UnknownNameError("corruption", name, CORRUPTIONS)
    corruption = CORRUPTIONS[name]
    if corruption.needs_salience and draw.salience is None:
        raise ConfigError(f"The corruption {name} needs to know what is salient.", remedy="salience=, or drop_random")
    least, most = (1.0, math.inf) if corruption.unit == "tiles_per_side" else (0.0, math.inf if corruption.unit == "deviation" else 1.0)
    if not least <= strength <= most:
        raise ConfigError(f"The strength of {name} is out of range.", got=strength, allowed=f"{least:g} to {most:g} ({corruption.unit})")
    return image_01 if strength == corruption.intact else corruption.apply(image_01, strength, draw)


def drop_tiles(image_01: Tensor, ranks: Tensor, share: float) -> Tensor:
    """Paint round(share · h·w) tiles black: those of rank 0, 1, … in `ranks` (B, h, w)."""
    rows, columns = (torch.from_numpy(cells_of_pixels(side, n)) for side, n in zip(image_01.shape[-2:], ranks.shape[1:]))
    dropped = ranks[:, rows][:, :, columns] < round(share * ranks[0].numel())
    return image_01.masked_fill(dropped[:, None].to(image_01.device), 0.0)


def shuffle_tiles(image_01: Tensor, orders: Tensor, grid: tuple[int, int]) -> Tensor:
    """Put tile `orders[b, i]` where tile i was: orders (B, h·w). Tiles of unequal size lose or repeat a pixel at their border."""
    height, width = image_01.shape[-2:]
    (row_tile, row_offset), (column_tile, column_offset) = _tile_and_offset(height, grid[0]), _tile_and_offset(width, grid[1])
    shuffled = torch.empty_like(image_01)
    for picture, order, target in zip(image_01, orders, shuffled):
        source = order[row_tile[:, None] * grid[1] + column_tile[None, :]]  # (H, W): the tile that each pixel comes from
        y = _pixel(source // grid[1], row_offset[:, None], height, grid[0])
        x = _pixel(source % grid[1], column_offset[None, :], width, grid[1])
        target.copy_(picture[:, y.to(picture.device), x.to(picture.device)])
    return shuffled


def shift_image(image: Tensor, down_px: int, right_px: int) -> Tensor:
    """Move (C, H, W) by whole pixels; what comes in is the image mirrored at its border."""
    y, x = (_mirrored(torch.arange(side) - by, side) for side, by in zip(image.shape[-2:], (down_px, right_px)))
    return image[:, y.to(image.device)][:, :, x.to(image.device)]


def gaussian_blur(image: Tensor, deviation_px: float) -> Tensor:
    """Convolve (B, C, H, W) with a Gaussian cut at three deviations, the image mirrored at its border."""
    radius = math.ceil(3 * deviation_px)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets / deviation_px) ** 2)
    kernel = (kernel / kernel.sum()).to(image)
    for axis in (-2, -1):
        side = image.shape[axis]
        lines = image.movedim(axis, -1)
        padded = lines[..., _mirrored(torch.arange(-radius, side + radius), side).to(image.device)]
        lines = F.conv1d(padded.reshape(-1, 1, side + 2 * radius), kernel[None, None]).reshape(lines.shape)
        image = lines.movedim(-1, axis)
    return image


def cells_of_pixels(side: int, num_cells: int) -> NDArray[np.int64]:
    """Return in which of `num_cells` cells each of `side` pixels lies; works where one is no multiple of the other."""
    return np.arange(side) * num_cells // side


def _drop_random(image_01: Tensor, share: float, draw: Draw) -> Tensor:
    num_tiles = draw.tiles[0] * draw.tiles[1]
    ranks = torch.stack([torch.randperm(num_tiles, generator=generator) for generator in draw.generators("drop_random")])
    return drop_tiles(image_01, ranks.unflatten(1, draw.tiles), share)


def _drop_salient(image_01: Tensor, share: float, draw: Draw) -> Tensor:
    return drop_tiles(image_01, _salience_ranks(draw), share)


def _drop_non_salient(image_01: Tensor, share: float, draw: Draw) -> Tensor:
    ranks = _salience_ranks(draw)
    return drop_tiles(image_01, ranks[0].numel() - 1 - ranks, share)


def _salience_ranks(draw: Draw) -> Tensor:
    """Return the rank (B, h, w) of each tile, 0 the most salient; equal ones in random order."""
    assert draw.salience is not None
    salience = F.adaptive_avg_pool2d(draw.salience.cpu().double()[:, None], draw.tiles).flatten(1)
    shuffles = torch.stack([torch.randperm(salience.shape[1], generator=generator) for generator in draw.generators("salience")])
    order = shuffles.gather(1, salience.gather(1, shuffles).argsort(dim=1, descending=True, stable=True))
    return order.argsort(dim=1).unflatten(1, draw.tiles)


def _shuffle(image_01: Tensor, tiles_per_side: float, draw: Draw) -> Tensor:
    n = int(tiles_per_side)
    orders = torch.stack([torch.randperm(n * n, generator=generator) for generator in draw.generators(f"shuffle/{n}")])
    return shuffle_tiles(image_01, orders, (n, n))


def _shift(image_01: Tensor, share: float, draw: Draw) -> Tensor:
    by_px = share * min(image_01.shape[-2:])
    angles = [2 * math.pi * torch.rand((), generator=generator).item() for generator in draw.generators("shift")]
    moves = [(round(by_px * math.sin(angle)), round(by_px * math.cos(angle))) for angle in angles]
    return torch.stack([shift_image(picture, down, right) for picture, (down, right) in zip(image_01, moves)])


def _noise(image_01: Tensor, deviation: float, draw: Draw) -> Tensor:
    noise = torch.stack([torch.randn(image_01.shape[1:], generator=generator) for generator in draw.generators("noise")])
    return (image_01 + deviation * noise.to(image_01)).clamp_(0, 1)


def _blur(image_01: Tensor, share: float, draw: Draw) -> Tensor:
    return gaussian_blur(image_01, share * min(image_01.shape[-2:]))


def _mirrored(positions: Tensor, side: int) -> Tensor:
    """Fold positions outside 0 … side − 1 back in, the border pixel not repeated."""
    if side == 1:
        return torch.zeros_like(positions)
    period = 2 * (side - 1)
    positions = positions.remainder(period)
    return torch.minimum(positions, period - positions)


def _tile_and_offset(side: int, num_tiles: int) -> tuple[Tensor, Tensor]:
    """Return in which tile each pixel lies, and how far from its first pixel."""
    tile = torch.from_numpy(cells_of_pixels(side, num_tiles))
    return tile, torch.arange(side) - _first(tile, side, num_tiles)


def _first(tile: Tensor, side: int, num_tiles: int) -> Tensor:
    return -(-tile * side // num_tiles)


def _pixel(tile: Tensor, offset: Tensor, side: int, num_tiles: int) -> Tensor:
    """Return the pixel at an offset into a tile, at most its last."""
    return torch.minimum(_first(tile, side, num_tiles) + offset, _first(tile + 1, side, num_tiles) - 1)


_SHARES = tuple(number / 10 for number in range(10))
CORRUPTIONS: dict[str, Corruption] = {
    "drop_random": Corruption(_drop_random, "share_of_tiles", _SHARES, num_draws=5),
    "drop_salient": Corruption(_drop_salient, "share_of_tiles", _SHARES, needs_salience=True),
    "drop_non_salient": Corruption(_drop_non_salient, "share_of_tiles", _SHARES, needs_salience=True),
    "shuffle": Corruption(_shuffle, "tiles_per_side", (1, 2, 4, 8, 14), num_draws=5, intact=1.0),
    "shift": Corruption(_shift, "share_of_side", (0, 1 / 32, 1 / 16, 1 / 8, 1 / 4), num_draws=5),
    "noise": Corruption(_noise, "deviation", (0, 0.05, 0.1, 0.2, 0.4), num_draws=5),
    "blur": Corruption(_blur, "share_of_side", (0, 0.005, 0.01, 0.02, 0.04)),
}
