"""Which positions look alike: a mosaic with one tile for every position (ViT, arXiv 2010.11929, fig. 7 centre)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kawara.plots.scales import DIVERGING, draw_cells, draw_scale
from kawara.plots.style import Language, axes_at, house_style, new_figure

Floats = NDArray[np.floating[Any]]

MAX_TILES = 8
_GAP_CELLS = 2
_LONGER_SIDE_IN = 3.3
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "title": "Similarity of the positions",
        "row": "row of the patch",
        "column": "column of the patch",
        "scale": "cosine of the position embeddings",
    },
    "ja": {
        "title": "位置埋め込みの類似度",
        "row": "パッチの行",
        "column": "パッチの列",
        "scale": "位置埋め込みのコサイン類似度",
    },
}


def position_mosaic(cosine: Floats, *, language: Language = "en") -> Figure:
    """Draw for every cell of the grid a tile with its cosine to every cell.

    Grids of more than 8 cells a side show every second, third, … tile, each with all cells: more would be too small to read.

    Args:
        cosine: (h, w, h, w) in [−1, 1].
    """
    cosine = np.asarray(cosine, dtype=np.float64)
    words = _WORDS[language]
    h, w = cosine.shape[:2]
    step = -(-max(h, w) // MAX_TILES)
    rows, columns = np.arange(step // 2, h, step), np.arange(step // 2, w, step)
    scale = _LONGER_SIDE_IN / max(len(rows) * (h + _GAP_CELLS), len(columns) * (w + _GAP_CELLS))
    height, width = scale * len(rows) * (h + _GAP_CELLS), scale * len(columns) * (w + _GAP_CELLS)
    with house_style():
        figure = new_figure(0.75 + max(width, 2.2) + 0.3, 1.05 + height + 0.45)
        axes = axes_at(figure, 0.75, 1.05, width, height)
        draw_cells(axes, _tiled(cosine[rows][:, columns]), DIVERGING, Normalize(-1, 1))
        axes.set_title(words["title"], pad=8)
        for put, chosen, size in ((axes.set_yticks, rows, h), (axes.set_xticks, columns, w)):
            put(np.arange(len(chosen)) * (size + _GAP_CELLS) + (size - 1) / 2, [f"{number}" for number in chosen])
        axes.set_ylabel(words["row"])
        axes.set_xlabel(words["column"])
        draw_scale(figure, (0.75, 0.42, max(width, 2.2), 0.12), DIVERGING, Normalize(-1, 1), words["scale"], ticks=(-1, -0.5, 0, 0.5, 1))
    return figure


def _tiled(cosine: Floats) -> Floats:
    """Return (rows, columns, h, w) as one array with blanks between the tiles."""
    rows, columns, h, w = cosine.shape
    framed = np.full((rows, columns, h + _GAP_CELLS, w + _GAP_CELLS), np.nan)
    framed[:, :, :h, :w] = cosine
    sheet = framed.transpose(0, 2, 1, 3).reshape(rows * (h + _GAP_CELLS), columns * (w + _GAP_CELLS))
    return sheet[:-_GAP_CELLS, :-_GAP_CELLS]
