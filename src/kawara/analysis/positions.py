"""What the position table has learned of the plane: which positions look alike (ViT, arXiv 2010.11929, fig. 7 centre).

For every cell of the grid, the cosine between its position vector and that of every cell. In a trained table a cell resembles its own
neighbourhood, and its row and column more than the rest. Prefix entries (class token) have no place in the plane and are left out.

Axes: h w patch grid, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kawara.errors import ConfigError
from kawara.layers.position import resize_positions
from kawara.models import ImageModel, VisionTransformer

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class PositionSimilarity:
    """Cosines between all positions of a grid, and their means over kinds of pairs of different cells (NaN where there is no such pair)."""

    cosine: Floats
    """(h, w, h, w) float64 in [−1, 1]: the cell asked about, then the cell it is compared with."""
    same_row: float
    same_column: float
    elsewhere: float
    """Neither row nor column shared."""


@torch.no_grad()
def position_similarity(model: ImageModel, grid: tuple[int, int] | None = None) -> PositionSimilarity:
    """Compare the positions of a ViT, learned or fixed, with each other.

    Args:
        grid: (h, w) to resize the table to first, in the way of the model; None is the model's own.

    Raises:
        ConfigError: the model has no position table.
    """
    table = model.pos_embed if isinstance(model, VisionTransformer) else None
    if not isinstance(model, VisionTransformer) or table is None:
        raise ConfigError(
            "This model has no position embedding.", got=type(model).__name__, allowed="a ViT with position learned or sincos"
        )
    config = model.config
    grid = config.grid if grid is None else grid
    num_prefix = config.num_positioned_prefix
    table = resize_positions(table, config.grid, grid, num_prefix=num_prefix, method=config.position_resize)
    return compare_positions(table[0, num_prefix:], grid)


def compare_positions(table: Tensor, grid: tuple[int, int]) -> PositionSimilarity:
    """Compare the rows of a table (h·w, D) that lie on a grid (h, w)."""
    h, w = grid
    unit = F.normalize(table.detach().cpu().double(), dim=1)
    cosine = (unit @ unit.T).clamp(-1.0, 1.0).numpy()
    row, column = np.divmod(np.arange(h * w), w)
    in_row, in_column = np.equal.outer(row, row), np.equal.outer(column, column)
    return PositionSimilarity(
        cosine.reshape(h, w, h, w),
        same_row=_mean(cosine[in_row & ~in_column]),
        same_column=_mean(cosine[in_column & ~in_row]),
        elsewhere=_mean(cosine[~in_row & ~in_column]),
    )


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")
