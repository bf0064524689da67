"""Where the tokens of a layer come from: CKA with the pixels at every place (Raghu et al., arXiv 2108.08810, fig. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kawara.plots.scales import SEQUENTIAL, depth_colors, draw_cells, draw_scale, short_names
from kawara.plots.style import CLAY, SMALL_PT, Language, axes_at, house_style, new_figure, shortened

Floats = NDArray[np.floating[Any]]

_WIDTH_IN = 4.5
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "grid_title": "Which pixels a token resembles",
        "token": "row {}, column {}",
        "cka": "CKA of the token with the pixels of each patch",
        "distance_title": "Does a token resemble its own place?",
        "distance": "distance between token and pixels (patches)",
        "mean": "mean CKA",
        "home": "block {}: {:.0f} % at home",
    },
    "ja": {
        "grid_title": "トークンはどの画素に似ているか",
        "token": "{}行 {}列",
        "cka": "トークンと各パッチの画素とのCKA",
        "distance_title": "トークンは自分の位置に似ているか",
        "distance": "トークンと画素の距離（パッチ数）",
        "mean": "CKAの平均",
        "home": "ブロック{}：自位置が最大 {:.0f}%",
    },
}


def localisation_grid(cka: Floats, *, language: Language = "en") -> Figure:
    """Draw nine tokens, from corner to corner, each with its CKA to the pixels at every place; its own place is framed.

    Args:
        cka: (h, w, h, w): token, then place of the pixels. All tiles share one scale, from 0 to the largest value drawn.
    """
    cka = np.asarray(cka, dtype=np.float64)
    h, w = cka.shape[:2]
    words = _WORDS[language]
    rows, columns = (sorted({0, size // 2, size - 1}) for size in (h, w))
    shown = cka[np.ix_(rows, columns)]
    norm = Normalize(0, max(float(np.nanmax(shown)), 1e-6))
    gap, title = 0.12, 0.2
    side = (_WIDTH_IN - 0.4 - gap * (len(columns) - 1)) / max(3, len(columns))
    tile = side * h / w
    height = len(rows) * (tile + title) + 1.1
    with house_style():
        figure = new_figure(_WIDTH_IN, height)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                axes = axes_at(figure, 0.2 + j * (side + gap), height - 0.4 - (i + 1) * (tile + title), side, tile)
                draw_cells(axes, np.maximum(cka[row, column], 0), SEQUENTIAL, norm)
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=CLAY, linewidth=1.4, clip_on=False))
                axes.set_xticks([])
                axes.set_yticks([])
                axes.set_title(words["token"].format(row, column), fontsize=SMALL_PT, fontweight="normal", pad=3)
        figure.text(0.2 / _WIDTH_IN, 1 - 0.25 / height, words["grid_title"], fontsize=11, fontweight="bold")
        draw_scale(figure, (0.2, 0.45, _WIDTH_IN - 0.4, 0.12), SEQUENTIAL, norm, words["cka"])
    return figure


def localisation_by_depth(
    curves: Sequence[tuple[Floats, Floats]], names: Sequence[str], shares_at_home: Sequence[float], *, language: Language = "en"
) -> Figure:
    """Draw how the CKA of tokens and pixels falls with their distance, a curve for each depth.

    Args:
        curves: of each layer the distances (k,) in patches and the mean CKA at each (k,).
        names: places of the layers.
        shares_at_home: of each layer the share of tokens that resemble the pixels at their own place most.
    """
    words = _WORDS[language]
    with house_style():
        figure = new_figure(_WIDTH_IN, 3.2)
        axes = axes_at(figure, 0.7, 0.6, _WIDTH_IN - 0.85, 2.15)
        axes.set_title(words["distance_title"], pad=8)
        labels = [shortened(name, 1.0, SMALL_PT) for name in short_names(names)]
        for (distance, values), color, label, share in zip(curves, depth_colors(len(curves)), labels, shares_at_home):
            axes.plot(distance, values, color=color, marker="o", markersize=3, label=words["home"].format(label, 100 * share))
        axes.legend(loc="upper right", borderaxespad=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_ylim(bottom=min(0.0, *(float(np.nanmin(values)) for _, values in curves), 0.0))
        axes.grid(axis="y")
        axes.set_xlabel(words["distance"])
        axes.set_ylabel(words["mean"])
    return figure
