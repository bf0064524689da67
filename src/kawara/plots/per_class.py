"""Recall of each class as horizontal bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .calibration import wilson_interval
from .style import CLAY, INK, MUTED, SLATE_PALE, Language, axes_at, house_style, new_figure, nothing_to_draw, shortened, text_width_in

MAX_BARS = 40

_ROW_IN, _NAME_IN = 0.26, 1.9
_WORDS: dict[Language, dict[str, str]] = {
    "en": {"recall": "recall: images of the class named rightly (%), 95 % interval", "none": "no class has images"},
    "ja": {"recall": "再現率：そのクラスの画像を正しく判定した割合（%）、95%信頼区間", "none": "画像のあるクラスがありません"},
}


def recall_bars(rows: Sequence[Mapping[str, Any]], *, language: Language = "en") -> Figure:
    """Draw recall with its Wilson interval and the number of images of each class, the worst on top, at most 40.

    Args:
        rows: with "class", "num_images" and "recall" in [0, 1]; classes without images are left out.
    """
    words = _WORDS[language]
    kept = sorted((row for row in rows if row["recall"] is not None), key=lambda row: row["recall"])[:MAX_BARS]
    with house_style():
        height = max(1, len(kept)) * _ROW_IN
        names = [shortened(row["class"], _NAME_IN, 9) for row in kept]
        left = max((text_width_in(name, 9) for name in names), default=1.0) + 0.2
        figure = new_figure(left + 4.2, height + 0.75)
        axes = axes_at(figure, left, 0.6, 3.3, height)
        if not kept:
            nothing_to_draw(axes, words["none"])
            return figure
        recall = np.array([row["recall"] for row in kept], dtype=np.float64)
        count = np.array([row["num_images"] for row in kept])
        low, high = wilson_interval(recall, count)
        places = np.arange(len(kept))
        axes.barh(places, 100 * recall, height=0.66, color=SLATE_PALE)
        spread = 100 * np.maximum(np.stack([recall - low, high - recall]), 0)
        axes.errorbar(100 * recall, places, xerr=spread, fmt="o", color=CLAY, markersize=3.5, elinewidth=1.2)
        for place, number in zip(places, count):
            axes.text(103, float(place), f"n = {number:,}", va="center", fontsize=8, color=MUTED)
        axes.set_yticks(places, names, fontsize=9, color=INK)
        axes.set_ylim(len(kept) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel(words["recall"])
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    return figure
