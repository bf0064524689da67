"""Where a patch sits: position tables and how they are resized to another grid.

Learned (ViT, arXiv 2010.11929, §3.1): a table with one vector per token, added once at the input. Fixed 2-D sin-cos (MAE, arXiv
2111.06377): a quarter of the width each for sin x, cos x, sin y, cos y (x the column, y the row), with the frequencies
10000^{−k/(D/4)}, k = 0 … D/4 − 1. big_vision divides by D/4 − 1 instead; this file follows MAE.

Resizing (ViT, §3.2): the entries of the grid are interpolated in 2-D, those of prefix tokens stay as they are. Every code base
interpolates in its own way, and a checkpoint answers right only with the way of its source:

    bicubic             DeiT, MAE, Hugging Face ViT and DeiT
    bicubic-antialias   timm, DINOv2 with registers; the default here
    bilinear            DPT; timm for .npz files
    bicubic-corners     torchvision (the corners of both grids coincide)
    bilinear-corners    google-research and big_vision (scipy.ndimage.zoom of order 1)
    dinov2-offset       DINO, DINOv2: bicubic whose scale is (new + 0.1) / old

Axes: h w patch grid, R prefix entries in the table, D width.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from kawara.errors import ConfigError, UnknownNameError

PositionResize = Literal["bicubic", "bicubic-antialias", "bilinear", "bicubic-corners", "bilinear-corners", "dinov2-offset"]

_DINOV2_OFFSET = 0.1


def sincos_positions(grid: tuple[int, int], width: int, *, temperature: float = 10_000.0) -> Tensor:
    """Return the fixed 2-D table (1, h·w, D), row by row. Raises ConfigError unless D is a multiple of 4."""
    if width % 4:
        raise ConfigError("2-D sin-cos positions need a width that is a multiple of 4.", got=width, remedy=f"{width // 4 * 4 + 4}")
    frequencies = temperature ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    x = column.reshape(-1, 1) * frequencies
    y = row.reshape(-1, 1) * frequencies
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float().unsqueeze(0)


def resize_positions(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], *, num_prefix: int = 0, method: PositionResize = "bicubic-antialias"
) -> Tensor:
    """Return the table (1, R + h·w, D) of the grid `old` for the grid `new`; the same tensor where they are equal.

    Raises ConfigError where the table does not fit the old grid.
    """
    if table.shape[1] != num_prefix + old[0] * old[1]:
        raise ConfigError(
            "The position table does not fit its grid.",
            got=f"{table.shape[1]} entries",
            allowed=f"{num_prefix} prefix entries + {old[0]}×{old[1]} = {num_prefix + old[0] * old[1]}",
        )
    if new == old:
        return table
    prefix, positions = table[:, :num_prefix], table[:, num_prefix:]
    maps = positions.unflatten(1, old).permute(0, 3, 1, 2)  # (1, D, h, w)
    # In float32 whatever the table is: half precision would cost digits, and has no bicubic on some devices.
    maps = _interpolate(maps.float(), new, method).to(table.dtype)
    return torch.cat([prefix, maps.flatten(2).transpose(1, 2)], dim=1)


def _interpolate(maps: Tensor, new: tuple[int, int], method: PositionResize) -> Tensor:
    match method:
        case "bicubic":
            return F.interpolate(maps, size=new, mode="bicubic", align_corners=False)
        case "bicubic-antialias":
            return F.interpolate(maps, size=new, mode="bicubic", align_corners=False, antialias=True)
        case "bilinear":
            return F.interpolate(maps, size=new, mode="bilinear", align_corners=False)
        case "bicubic-corners":
            return F.interpolate(maps, size=new, mode="bicubic", align_corners=True)
        case "bilinear-corners":
            return F.interpolate(maps, size=new, mode="bilinear", align_corners=True)
        case "dinov2-offset":
            # Given as a scale, not a size: the offset then shifts every sampling point a little, as it did when these models were trained.
            scale = (new[0] + _DINOV2_OFFSET) / maps.shape[-2], (new[1] + _DINOV2_OFFSET) / maps.shape[-1]
            return F.interpolate(maps, scale_factor=scale, mode="bicubic", align_corners=False)
    raise UnknownNameError("way to resize positions", method, get_args(PositionResize))
