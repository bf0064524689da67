"""Which class was taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kawara.plots.style import (
    CLAY,
    INK,
    PAPER,
    SLATE,
    WASH,
    Language,
    axes_at,
    house_style,
    new_figure,
    nothing_to_draw,
    shortened,
    text_width_in,
)

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]

MAX_CLASSES_WITH_COUNTS = 20
MAX_CLASSES_WITH_NAMES = 40
MAX_CELLS = 100
GAMMA = 0.5  # a share of 1 % is a tenth of the way to full colour: rare mistakes are seen

_RIGHT = LinearSegmentedColormap.from_list("right", [PAPER, "#b9cad9", SLATE, "#1d3a55"])
_WRONG = LinearSegmentedColormap.from_list("wrong", [(0, PAPER), (0.1, "#fae3d8"), (0.3, "#efb79d"), (0.65, CLAY), (1, "#8f3413")])
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "true": "true class",
        "predicted": "predicted class",
        "true_number": "true class (number)",
        "predicted_number": "predicted class (number)",
        "true_group": "true class (number, {} to a cell)",
        "predicted_group": "predicted class (number, {} to a cell)",
        "share": "share of the images of the true class (%)",
        "right": "right",
        "wrong": "wrong",
        "none": "no classes",
    },
    "ja": {
        "true": "正解のクラス",
        "predicted": "予測したクラス",
        "true_number": "正解のクラス（番号）",
        "predicted_number": "予測したクラス（番号）",
        "true_group": "正解のクラス（番号、1マスに{}クラス）",
        "predicted_group": "予測したクラス（番号、1マスに{}クラス）",
        "share": "正解のクラスの画像に占める割合（%）",
        "right": "正解",
        "wrong": "誤り",
        "none": "クラスがありません",
    },
}


def confusion(matrix: Ints, class_names: Sequence[str], *, language: Language = "en") -> Figure:
    """Draw a confusion matrix: colour is the share of each true class, slate on the diagonal, clay beside it.

    Counts are written for up to 20 classes, names for up to 40. Beyond 100 classes neighbours share a cell, since single rows
    would be thinner than a pixel.

    Args:
        matrix: (K, K) images of true class (row) that were called each class (column).
        class_names: K names.
    """
    matrix = np.asarray(matrix)
    num_classes = len(matrix)
    words = _WORDS[language]
    with house_style():
        if num_classes == 0:
            figure = new_figure(4.5, 3.0)
            nothing_to_draw(axes_at(figure, 0, 0, 4.5, 3.0), words["none"])
            return figure
        with_names = num_classes <= MAX_CLASSES_WITH_NAMES
        side = float(np.clip(0.95 * num_classes, 2.4, 4.8))
        size_pt = 9.0 if num_classes <= MAX_CLASSES_WITH_COUNTS else 7.0
        names = [shortened(name, 1.35, size_pt) for name in class_names] if with_names else []
        widest = max((text_width_in(name, size_pt) for name in names), default=0.4)
        upright = with_names and widest > side / num_classes * 0.95
        left, bottom, key = widest + 0.55, (widest if upright else 0.2) + 0.45, 0.85
        figure = new_figure(left + side + 0.3, bottom + side + key + 0.1)
        axes = axes_at(figure, left, bottom + key, side, side)
        shares, per_cell = _shares(matrix)
        _draw_cells(axes, shares)
        if num_classes <= MAX_CLASSES_WITH_COUNTS:
            _write_counts(axes, matrix, shares)
        _label(axes, names, per_cell, num_classes, size_pt, upright, words)
        _draw_key(figure, left, side, words)
    return figure


def _shares(matrix: Ints) -> tuple[Floats, int]:
    """Return shares of each true class (G, G), NaN for a class without images, and how many classes go into a cell."""
    per_cell = -(-len(matrix) // MAX_CELLS)
    starts = np.arange(0, len(matrix), per_cell)
    grouped = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1).astype(np.float64)
    total = grouped.sum(axis=1, keepdims=True)
    return np.divide(grouped, total, out=np.full_like(grouped, np.nan), where=total > 0), per_cell


def _colors(shares: Floats) -> Floats:
    """Return the colour of every cell (G, G, 3)."""
    strength = np.nan_to_num(shares) ** GAMMA
    on_diagonal = np.eye(len(shares), dtype=bool)[:, :, None]
    colors = np.where(on_diagonal, _RIGHT(strength)[:, :, :3], _WRONG(strength)[:, :, :3])
    empty = (shares == 0) | np.isnan(shares)
    colors[empty] = to_rgb(WASH)
    return colors


def _draw_cells(axes: Axes, shares: Floats) -> None:
    count = len(shares)
    colors = _colors(shares)
    axes.imshow(colors, interpolation="nearest", aspect="auto", extent=(-0.5, count - 0.5, count - 0.5, -0.5))
    if count <= MAX_CLASSES_WITH_NAMES:
        joints = np.arange(count - 1) + 0.5
        width = 1.5 if count <= MAX_CLASSES_WITH_COUNTS else 0.6
        axes.hlines(joints, -0.5, count - 0.5, color=PAPER, linewidth=width)
        axes.vlines(joints, -0.5, count - 0.5, color=PAPER, linewidth=width)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)


def _write_counts(axes: Axes, matrix: Ints, shares: Floats) -> None:
    colors = _colors(shares)
    size_pt = 11.0 if len(matrix) <= 5 else 9.0 if len(matrix) <= 12 else 6.5
    for row, column in zip(*np.nonzero(matrix)):
        dark = colors[row, column] @ (0.299, 0.587, 0.114) < 0.6
        axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=size_pt, color=PAPER if dark else INK)


def _label(axes: Axes, names: list[str], per_cell: int, num_classes: int, size_pt: float, upright: bool, words: dict[str, str]) -> None:
    if names:
        ticks = np.arange(len(names))
        axes.set_yticks(ticks, names, fontsize=size_pt)
        axes.set_xticks(ticks, names, fontsize=size_pt, rotation=90 if upright else 0)
    else:
        numbers = [int(number) for number in MaxNLocator(5, integer=True).tick_values(0, num_classes - 1) if 0 <= number < num_classes]
        places = [number // per_cell for number in numbers]
        axes.set_xticks(places, [f"{number}" for number in numbers])
        axes.set_yticks(places, [f"{number}" for number in numbers])
    kind = "" if names else "_number" if per_cell == 1 else "_group"
    axes.set_ylabel(words[f"true{kind}"].format(per_cell))
    axes.set_xlabel(words[f"predicted{kind}"].format(per_cell))
    axes.tick_params(length=0, pad=4)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_key(figure: Figure, left_in: float, side_in: float, words: dict[str, str]) -> None:
    """Draw what the colours stand for: two bars from 0 to 100 %."""
    axes = axes_at(figure, left_in, 0.48, side_in, 0.3)
    strength = np.linspace(0, 1, 200) ** GAMMA
    axes.imshow(np.stack([_RIGHT(strength), _WRONG(strength)])[:, :, :3], extent=(0, 100, 0, 2), aspect="auto", interpolation="nearest")
    axes.axhline(1, color=PAPER, linewidth=1.5)
    axes.set_yticks([1.5, 0.5], [words["right"], words["wrong"]], fontsize=8)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.tick_params(length=0, pad=3, labelsize=8)
    axes.set_xlabel(words["share"], fontsize=9, labelpad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
