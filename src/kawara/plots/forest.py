"""Differences with their intervals, one below the other, against zero: which of them can be told from nothing?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from kawara.plots.style import CLAY, INK, LINE, MUTED, SLATE, Language, axes_at, house_style, new_figure, nothing_to_draw, shortened

_LEAST_REACH = 1.0
"""Of the axis to either side, in points: less would make a mountain of nothing."""
_ROW_IN, _NAMES_IN, _WIDTH_IN = 0.34, 2.5, 4.0
_WORDS: dict[Language, dict[str, str]] = {
    "en": {"axis": "difference (points) with its 95 % interval", "none": "nothing compared"},
    "ja": {"axis": "差（ポイント）と95%信頼区間", "none": "比較がありません"},
}


@dataclass(frozen=True)
class Difference:
    """One row: a difference of shares and its interval, in [−1, 1]."""

    label: str
    value: float
    interval: tuple[float, float]


def forest(rows: Sequence[Difference], *, lower: str = "", higher: str = "", language: Language = "en") -> Figure:
    """Draw the differences in the order given; one whose interval leaves 0 out is in colour, clay below 0, slate above.

    Args:
        lower, higher: what a difference below and above 0 means.
    """
    words = _WORDS[language]
    with house_style():
        height = _ROW_IN * max(1, len(rows))
        figure = new_figure(_NAMES_IN + _WIDTH_IN + 0.2, height + 1.0)
        axes = axes_at(figure, _NAMES_IN, 0.6, _WIDTH_IN, height)
        if not rows:
            nothing_to_draw(axes, words["none"])
            return figure
        axes.axvline(0, color=INK, linewidth=1)
        axes.grid(axis="x")
        for place, row in enumerate(rows):
            low, high = (100 * bound for bound in row.interval)
            color = CLAY if high < 0 else SLATE if low > 0 else MUTED
            axes.plot([low, high], [place, place], color=color, linewidth=2)
            axes.plot([100 * row.value], [place], color=color, marker="o", markersize=6)
        reach = 1.1 * max(_LEAST_REACH, *(100 * abs(bound) for row in rows for bound in row.interval))
        axes.set(xlim=(-reach, reach), ylim=(len(rows) - 0.5, -0.5), xlabel=words["axis"])
        axes.set_yticks(range(len(rows)), [shortened(row.label, _NAMES_IN - 0.2) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_color(LINE)
        for x, text, side in ((0.0, lower, "left"), (1.0, higher, "right")):
            axes.text(x, 1.0, text, transform=axes.transAxes, ha=side, va="bottom", fontsize=9, color=MUTED)
    return figure
