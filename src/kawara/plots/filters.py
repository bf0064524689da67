"""What a model looks for first: its filters as small pictures (ViT, arXiv 2010.11929, fig. 7 left)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kawara.plots.style import Language, axes_at, house_style, new_figure

Floats = NDArray[np.floating[Any]]

MAX_TILES = 64
_WIDTH_IN = 4.5
_COLUMNS = {"components": 7, "kernels": 8}
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "components": "Principal components of the patch embedding",
        "kernels": "Kernels of the first convolution",
        "explained": "{} of {} components, {:.0f} % of the variance; each tile {}×{} px",
        "counted": "{} of {} kernels; each tile {}×{} px",
    },
    "ja": {
        "components": "パッチ埋め込みの主成分",
        "kernels": "最初の畳み込み層のカーネル",
        "explained": "全{1}成分のうち上位{0}成分（分散の{2:.0f}%）、各タイルは{3}×{4} px",
        "counted": "全{1}個のうち{0}個、各タイルは{2}×{3} px",
    },
}


def filter_tiles(
    tiles: Floats,
    *,
    kind: Literal["components", "kernels"] = "components",
    explained: Floats | None = None,
    num_filters: int | None = None,
    language: Language = "en",
) -> Figure:
    """Draw filters in rows, each stretched to the full range of its own values.

    Args:
        tiles: (n, P, P, C); C = 3 is drawn in colour, anything else as the grey mean over C. At most 64 are drawn.
        explained: (n,) share of the variance, written below principal components.
        num_filters: how many there are in all, as written below; None is n.
    """
    tiles = np.asarray(tiles, dtype=np.float64)[:MAX_TILES]
    words = _WORDS[language]
    total = len(tiles) if num_filters is None else num_filters
    columns = _COLUMNS[kind]
    rows = -(-len(tiles) // columns)
    side = (_WIDTH_IN - 0.2) / columns
    with house_style():
        figure = new_figure(_WIDTH_IN, rows * side + 0.8)
        axes = axes_at(figure, 0.1, 0.4, _WIDTH_IN - 0.2, rows * side)
        axes.imshow(_sheet(tiles, rows, columns), interpolation="none", aspect="auto")
        axes.set_axis_off()
        axes.set_title(words[kind], pad=8)
        size = tiles.shape[1:3]
        if explained is None:
            note = words["counted"].format(len(tiles), total, *size)
        else:
            note = words["explained"].format(len(tiles), total, 100 * float(np.sum(explained[: len(tiles)])), *size)
        figure.text(0.1 / _WIDTH_IN, 0.15 / (rows * side + 0.8), note, fontsize=9)
    return figure


def _sheet(tiles: Floats, rows: int, columns: int) -> Floats:
    """Return the tiles on one white sheet (…, …, 3), with a margin of an eighth of a tile between them."""
    if tiles.shape[3] != 3:
        tiles = np.repeat(tiles.mean(axis=3, keepdims=True), 3, axis=3)
    low, high = tiles.min(axis=(1, 2, 3), keepdims=True), tiles.max(axis=(1, 2, 3), keepdims=True)
    stretched = (tiles - low) / np.where(high > low, high - low, 1.0)
    # Pixels are multiplied first so that the margin can be a fraction of one.
    magnified = stretched.repeat(8, axis=1).repeat(8, axis=2)
    _, height, width, _ = magnified.shape
    margin = max(1, height // 8)
    sheet = np.ones((rows * columns, height + margin, width + margin, 3))
    sheet[: len(tiles), :height, :width] = magnified
    sheet = sheet.reshape(rows, columns, height + margin, width + margin, 3).transpose(0, 2, 1, 3, 4)
    return sheet.reshape(rows * (height + margin), columns * (width + margin), 3)
