"""What accuracy costs: models in the plane of accuracy and latency, and cost over the image size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from kawara.plots.lines import Line, draw_lines, title_and_legend
from kawara.plots.style import CLAY, INK, MUTED, SLATE, Language, axes_at, house_style, new_figure, nothing_to_draw, shortened

_COLORS, _MARKERS = (SLATE, CLAY, INK), ("o", "s", "^")
_LEAST_SPAN = 1.0
"""Of the accuracy axis, in points: less would make a mountain of nothing."""
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "pareto": "Accuracy and latency",
        "latency": "milliseconds an image (bar: median to 95th percentile)",
        "accuracy": "images right (%)",
        "macs": "Arithmetic over the image size",
        "macs_axis": "million multiply-adds an image",
        "ms": "Time over the image size",
        "ms_axis": "milliseconds an image",
        "side": "side of the image (px)",
        "none": "nothing measured",
    },
    "ja": {
        "pareto": "正解率と処理時間",
        "latency": "1枚あたりの処理時間（ミリ秒、横棒は中央値から95パーセンタイル）",
        "accuracy": "正解した画像の割合（%）",
        "macs": "画像サイズと演算量",
        "macs_axis": "1枚あたりの積和演算（百万回）",
        "ms": "画像サイズと処理時間",
        "ms_axis": "1枚あたりの処理時間（ミリ秒）",
        "side": "画像の一辺（px）",
        "none": "測定がありません",
    },
}


@dataclass(frozen=True)
class Candidate:
    """A model in the plane: accuracy with its interval in [0, 1], latency in milliseconds."""

    label: str
    accuracy: float
    interval: tuple[float, float]
    p50_ms: float
    p95_ms: float


def pareto(candidates: Sequence[Candidate], *, language: Language = "en") -> Figure:
    """Draw accuracy with its interval against latency; better lies to the upper left."""
    words = _WORDS[language]
    with house_style():
        figure = new_figure(4.9, 3.8)
        axes = axes_at(figure, 0.78, 0.6, 3.9, 2.6)
        axes.set_title(words["pareto"], pad=12)
        if not candidates:
            nothing_to_draw(axes, words["none"])
            return figure
        for candidate, color, marker in zip(candidates, _COLORS, _MARKERS):
            value, (low, high) = 100 * candidate.accuracy, (100 * bound for bound in candidate.interval)
            spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
            slower = [[0.0], [max(0.0, candidate.p95_ms - candidate.p50_ms)]]
            axes.errorbar(
                candidate.p50_ms, value, yerr=spread, xerr=slower, fmt=marker, color=color, markersize=7, elinewidth=1.4, capsize=3
            )
        bounds = [100 * bound for candidate in candidates for bound in candidate.interval]
        middle, span = (max(bounds) + min(bounds)) / 2, max(_LEAST_SPAN, max(bounds) - min(bounds))
        low, high = max(0.0, middle - 0.75 * span), min(middle + 0.75 * span, 100 + 0.08 * span)
        axes.set_ylim(low, high)
        right = 1.15 * max(candidate.p95_ms for candidate in candidates)
        axes.set_xlim(0, right)
        for candidate, color in zip(candidates, _COLORS):
            leftward = candidate.p50_ms > right / 2
            axes.annotate(
                shortened(candidate.label, 1.9, 8.5),
                (candidate.p50_ms, 100 * candidate.accuracy),
                (-8 if leftward else 8, 8),
                textcoords="offset points",
                ha="right" if leftward else "left",
                color=color,
                fontsize=8.5,
            )
        axes.grid()
        axes.set_xlabel(words["latency"], fontsize=9)
        axes.set_ylabel(words["accuracy"])
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(high, 100)])
        axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure


def cost_over_size(lines: Sequence[Line], quantity: str, *, language: Language = "en") -> Figure:
    """Draw cost against the side of the image, both on logarithmic axes: a power is a straight line.

    Args:
        lines: x in px, y in million MACs or milliseconds; NaN is left out.
        quantity: "macs" or "ms".
    """
    words = _WORDS[language]
    with house_style():
        figure = new_figure(4.9, 3.8)
        axes = axes_at(figure, 0.78, 0.6, 3.9, 2.35)
        kept = [_finite(line) for line in lines]
        kept = [line for line in kept if len(line.x)]
        if not kept:
            axes.set_title(words[quantity])
            nothing_to_draw(axes, words["none"])
            return figure
        draw_lines(axes, kept)
        axes.set_xscale("log")
        axes.set_yscale("log")
        sides = sorted({float(x) for line in kept for x in line.x})
        shown = _spaced(sides)
        axes.xaxis.set_major_locator(NullLocator())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(shown, [f"{side:g}" for side in shown])
        _plain_decades(axes)
        axes.grid()
        axes.set_xlabel(words["side"])
        axes.set_ylabel(words[f"{quantity}_axis"])
        title_and_legend(axes, words[quantity], columns=2)
    return figure


def _finite(line: Line) -> Line:
    kept = np.isfinite(line.y)
    return Line(line.label, np.asarray(line.x)[kept], np.asarray(line.y)[kept])


def _spaced(sides: list[float]) -> list[float]:
    """Return the sides that leave room for their numbers on a logarithmic axis."""
    kept = sides[:1]
    for side in sides[1:]:
        if side / kept[-1] >= 1.3:
            kept.append(side)
    return kept


def _plain_decades(axes: Axes) -> None:
    low, high = axes.get_ylim()
    subs = (1.0,) if high / low > 300 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", color=MUTED)
