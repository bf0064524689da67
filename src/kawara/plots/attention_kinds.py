"""Three kinds of attention side by side: where their weights act, and the weights that trained models gave to images.

Channel attention: s (C,), squeeze-and-excitation, arXiv 1709.01507. Spatial attention: m (h, w), CBAM, arXiv 1807.06521. Self-attention:
A (N, N), arXiv 1706.03762. docs/handbook/attention.md explains them with these figures; examples/three_attentions.py draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from kawara.plots.overlay import show_picture
from kawara.plots.scales import SEQUENTIAL
from kawara.plots.style import CLAY, MUTED, PAPER, SLATE, SMALL_PT, Language, axes_at, house_style, new_figure

Floats = NDArray[np.floating[Any]]

_LOOKS = ((SLATE, "o"), (CLAY, "s"))
_WORDS: dict[Language, dict[str, Any]] = {
    "en": {
        "kinds": (
            ("Channel attention", "which channel: C weights s", "each channel is scaled, everywhere alike"),
            ("Spatial attention", "where: h·w weights m", "each place is scaled, in all channels alike"),
            ("Self-attention", "from where to where: N·N weights A", "each query takes its own mean of all"),
        ),
        "channel": "channel",
        "weight": "weight s",
        "block": "block {}",
        "image": "image",
        "query": "query",
    },
    "ja": {
        "kinds": (
            ("チャネルアテンション", "どのチャネルか：C 個の重み s", "チャネルごとに掛ける（全位置共通）"),
            ("空間アテンション", "どこか：h·w 個の重み m", "位置ごとに掛ける（全チャネル共通）"),
            ("自己アテンション", "どこからどこへ：N·N 個の重み A", "クエリごとに全位置の加重平均をとる"),
        ),
        "channel": "チャネル",
        "weight": "重み s",
        "block": "ブロック {}",
        "image": "画像",
        "query": "クエリ",
    },
}

_GRID, _SHEET_IN, _PICTURE_IN, _GAP_IN = 4, 1.3, 1.1, 0.12
_QUERIES = (4, 14)


def attention_kinds(*, language: Language = "en") -> Figure:
    """Draw the schematic, with made-up weights: above the weights themselves, below what they act on."""
    y, x = np.divmod(np.arange(_GRID**2), _GRID)
    channels = np.array([0.85, 0.2, 0.55, 0.95, 0.35])
    places = np.exp(-((y - 1) ** 2 + (x - 2) ** 2) / 3).reshape(_GRID, _GRID)
    logits = -((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) / 3 + 1.6 * np.cos(2.4 * x[:, None] * (y[:, None] - 1))
    matrix = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    width = 2.85
    with house_style():
        figure = new_figure(3 * width, 4.4)
        panels = [axes_at(figure, 0.1 + width * kind, 0, width, 4.4) for kind in range(3)]
        for axes, (title, weights, act) in zip(panels, _WORDS[language]["kinds"]):
            axes.set(xlim=(0, width), ylim=(0, 4.4))
            axes.set_axis_off()
            axes.text(0, 4.25, title, fontsize=11, fontweight="bold", va="top")
            axes.text(0, 3.92, weights, fontsize=9, color=MUTED, va="top")
            axes.text(0, 0.12, act, fontsize=9, va="bottom")
        _cells(panels[0], channels[:, None], 0, 3.5, 1.0)
        _cells(panels[1], places, 0, 3.5, 1.0)
        for depth in reversed(range(len(channels))):  # the last channel lies at the back
            left, top = 0.3 * depth, 1.75 + 0.14 * depth
            _cells(panels[0], np.full(places.shape, channels[depth]), left, top, _SHEET_IN)
            _cells(panels[1], places, left, top, _SHEET_IN)
        _cells(panels[2], matrix / matrix.max(), 0, 3.5, 1.0)
        for side, query in enumerate(_QUERIES):
            _frame(panels[2], 0, 3.5 - (query + 1) / _GRID**2, 1.0, 1 / _GRID**2)
            left, top, cell = 1.42 * side, 1.75, _SHEET_IN / _GRID
            _cells(panels[2], matrix[query].reshape(_GRID, _GRID) / matrix.max(), left, top, _SHEET_IN)
            _frame(panels[2], left + x[query] * cell, top - (y[query] + 1) * cell, cell, cell)
    return figure


def channel_weights(gates: Sequence[Floats], names: tuple[str, str], *, language: Language = "en") -> Figure:
    """Draw the channel weights of two images in the first and in the last block.

    Args:
        gates: for each block, the weights (2, C) of both images.
        names: what is in them.
    """
    words = _WORDS[language]
    with house_style():
        figure = new_figure(9.6, 2.5)
        for left, width, block in ((0.7, 2.2, 0), (3.6, 5.8, len(gates) - 1)):
            axes, both = axes_at(figure, left, 0.55, width, 1.6), gates[block]
            axes.vlines(np.arange(both.shape[1]), both.min(axis=0), both.max(axis=0), color=MUTED, linewidth=0.7)
            for values, (color, marker), name in zip(both, _LOOKS, names):
                axes.plot(values, marker, color=color, markersize=3.5, label=name)
            axes.set(ylim=(-0.03, 1.03), xlabel=words["channel"], ylabel=words["weight"], title=words["block"].format(block + 1))
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    return figure


def weight_maps(
    images: Floats,
    maps: Sequence[Sequence[Floats]],
    label: str,
    *,
    highest: float | None = None,
    queries: Sequence[tuple[int, int] | None] = (None, None),
    language: Language = "en",
) -> Figure:
    """Draw two grey images, one below the other, and beside each the weights that its places were given, with the outline of the image.

    Args:
        images: (2, H, W) in 0 to 255.
        maps: for each image a map (h, w) for each block, from 0 (pale).
        label: how the lowest and the highest value of a map are written below it.
        highest: the value drawn darkest; None: the highest of each map.
        queries: (row, column) of the place in each map that asks, framed.
    """
    words = _WORDS[language]
    columns, step, row = 1 + len(maps[0]), _PICTURE_IN + _GAP_IN, _PICTURE_IN + 0.5
    with house_style():
        figure = new_figure(columns * step + _GAP_IN, 2 * row + 0.1)
        for side, (image, query) in enumerate(zip(images, queries)):
            height, width = image.shape
            for column in range(columns):
                axes = axes_at(figure, _GAP_IN + column * step, 0.28 + (1 - side) * row, _PICTURE_IN, _PICTURE_IN)
                show_picture(axes, np.repeat(image[:, :, None], 3, axis=2).astype(np.uint8))
                title = words["block"].format(column) if column else words["query" if query else "image"]
                axes.set_title(title, fontsize=9, fontweight="normal", pad=4)
                if column:
                    values = maps[side][column - 1]
                    within = (-0.5, width - 0.5, height - 0.5, -0.5)
                    axes.imshow(
                        values, SEQUENTIAL, vmin=0, vmax=highest or values.max(), extent=within, aspect="auto", interpolation="nearest"
                    )
                    axes.contour(image, [0.35 * image.max()], colors=CLAY, linewidths=1)
                    axes.set_xlabel(label.format(values.min(), values.max()), fontsize=SMALL_PT)
                if query:
                    cell_height, cell_width = height / maps[side][0].shape[0], width / maps[side][0].shape[1]
                    _frame(axes, query[1] * cell_width - 0.5, query[0] * cell_height - 0.5, cell_width, cell_height)
    return figure


def _cells(axes: Axes, values: Floats, left: float, top: float, height: float) -> None:
    """Draw weights (rows, columns) in [0, 1] as squares, all rows together `height` inches."""
    side = height / len(values)
    for (row, column), value in np.ndenumerate(values):
        corner = (left + column * side, top - (row + 1) * side)
        axes.add_patch(Rectangle(corner, side, side, facecolor=SEQUENTIAL(float(value)), edgecolor=PAPER, linewidth=2.5 * side))


def _frame(axes: Axes, left: float, bottom: float, width: float, height: float) -> None:
    axes.add_patch(Rectangle((left, bottom), width, height, fill=False, edgecolor=CLAY, linewidth=1.6))
