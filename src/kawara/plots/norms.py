"""How long the patch tokens are, by depth, and where the longest sit (Darcet et al., arXiv 2309.16588)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kawara.plots.scales import SEQUENTIAL, draw_cells, draw_scale, layer_ticks
from kawara.plots.style import CLAY, SMALL_PT, Language, axes_at, house_style, new_figure, text_width_in

Floats = NDArray[np.floating[Any]]

NUM_BINS = 60
_WIDTH_IN = 4.6
_ROW_IN = 0.2
_MIN_SHARE = 1e-4
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "title": "Norms of the patch tokens",
        "norm": "norm of a token (logarithmic)",
        "block": "block",
        "scale": "share of the tokens of a block",
        "threshold": "outliers lie to the right of the mark",
        "where_title": "Where tokens of large norm sit",
        "row": "row of the patch",
        "column": "column of the patch",
        "where_scale": "images with an outlier here (%)",
    },
    "ja": {
        "title": "パッチトークンのノルム",
        "norm": "トークンのノルム（対数目盛）",
        "block": "ブロック",
        "scale": "ブロック内のトークンに占める割合",
        "threshold": "印より右が外れ値",
        "where_title": "ノルムの大きいトークンの位置",
        "row": "パッチの行",
        "column": "パッチの列",
        "where_scale": "ここに外れ値がある画像の割合（%）",
    },
}


def norm_histograms(
    norms: Sequence[Floats], names: Sequence[str], *, thresholds: Sequence[float] | Floats | None = None, language: Language = "en"
) -> Figure:
    """Draw the distribution of the norms of each block as a row of cells, the input at the bottom.

    Args:
        norms: of each block any number of norms, in any shape. Zeros and what is not finite are left out.
        names: places of the blocks.
        thresholds: (S,) above which a token counts as an outlier, drawn as a mark in each row.
    """
    words = _WORDS[language]
    with house_style():
        logs = [np.log10(values[np.isfinite(values) & (values > 0)]) for values in (np.asarray(each).ravel() for each in norms)]
        limits = [value for each in logs if len(each) for value in (each.min(), each.max())]
        if thresholds is not None:
            limits += np.log10(np.asarray(thresholds, dtype=np.float64)).tolist()
        low, high = (min(limits) - 0.02, max(limits) + 0.02) if limits else (0.0, 1.0)
        shares = np.stack([np.histogram(each, NUM_BINS, (low, high))[0] / max(1, len(each)) for each in logs])
        ticks, labels = layer_ticks(names, max_ticks=16)
        left = 0.45 + max(text_width_in(label, SMALL_PT) for label in labels)
        width, height = _WIDTH_IN - left - 0.25, max(1.2, _ROW_IN * len(norms))
        figure = new_figure(_WIDTH_IN, height + 1.75)
        axes = axes_at(figure, left, 1.2, width, height)
        norm = Normalize(np.log10(_MIN_SHARE), 0)
        with np.errstate(divide="ignore"):
            cells = np.log10(np.where(shares > 0, np.maximum(shares, _MIN_SHARE), np.nan))
        image = draw_cells(axes, cells, SEQUENTIAL, norm, origin="lower")
        image.set_extent((low, high, -0.5, len(norms) - 0.5))
        axes.set_xlim(low, high)
        axes.set_ylim(-0.5, len(norms) - 0.5)
        axes.set_title(words["title"], pad=20 if thresholds is not None else 8)
        axes.set_yticks(ticks, labels, fontsize=SMALL_PT)
        round_norms = _round_numbers(low, high)
        axes.set_xticks(np.log10(round_norms), [f"{value:g}" for value in round_norms])
        axes.set_xlabel(words["norm"])
        axes.set_ylabel(words["block"])
        if thresholds is not None:
            rows = np.arange(len(norms))
            axes.vlines(np.log10(np.asarray(thresholds, dtype=np.float64)), rows - 0.42, rows + 0.42, color=CLAY, linewidth=2)
            axes.text(0, 1.0, words["threshold"], transform=axes.transAxes, fontsize=SMALL_PT, color=CLAY, va="bottom")
        powers = np.arange(int(np.log10(_MIN_SHARE)), 1)
        shown = [f"{100 * 10.0**power:g} %" for power in powers.tolist()]
        draw_scale(figure, (left, 0.45, width, 0.12), SEQUENTIAL, norm, words["scale"], ticks=powers.tolist(), tick_labels=shown)
    return figure


def outlier_places(share: Floats, *, language: Language = "en") -> Figure:
    """Draw the share of images with an outlier at each cell (h, w) of the grid; the scale ends at the largest share, at least 1 %."""
    share = np.asarray(share, dtype=np.float64)
    words = _WORDS[language]
    side = 3.0 / max(share.shape)
    height, width = side * share.shape[0], side * share.shape[1]
    norm = Normalize(0, max(1.0, 100 * float(share.max())))
    with house_style():
        figure = new_figure(0.75 + max(width, 2.4) + 0.2, height + 1.5)
        axes = axes_at(figure, 0.75, 1.05, width, height)
        draw_cells(axes, 100 * share, SEQUENTIAL, norm)
        axes.set_title(words["where_title"], pad=8)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.set_xlabel(words["column"])
        axes.set_ylabel(words["row"])
        draw_scale(figure, (0.75, 0.42, max(width, 2.4), 0.12), SEQUENTIAL, norm, words["where_scale"])
    return figure


def _round_numbers(low: float, high: float) -> list[float]:
    """Return at most eight round numbers whose logarithms lie between `low` and `high`; powers of ten alone over many decades."""
    mantissas = (1, 1.5, 2, 3, 5, 7) if high - low < 1.2 else (1, 3) if high - low < 4 else (1,)
    numbers = [mantissa * 10.0**power for power in range(int(np.floor(low)), int(np.ceil(high)) + 1) for mantissa in mantissas]
    inside = [number for number in numbers if low <= np.log10(number) <= high]
    return inside[:: -(-len(inside) // 8) or 1]
