"""Which frequencies the stream keeps, and how much its maps vary, by depth (Park and Kim, arXiv 2202.06709, figs. 2a, 8 and 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kawara.plots.scales import depth_colors, depth_scale, draw_scale
from kawara.plots.style import CLAY, INK, SLATE, SLATE_PALE, Language, axes_at, house_style, new_figure

Floats = NDArray[np.floating[Any]]

_WIDTH_IN = 4.5
_MARKS: dict[str, tuple[str, str]] = {"embedding": ("D", INK), "attention": ("o", CLAY), "mlp": ("s", SLATE), "block": ("s", SLATE)}
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "curves_title": "Frequencies in the stream",
        "frequency": "spatial frequency (× π per patch)",
        "amplitude": "Δ log amplitude",
        "input": "input",
        "output": "output",
        "depth": "depth (sub-blocks from the input)",
        "amplitude_title": "Amplitude at the highest frequency",
        "amplitude_axis": "Δ log amplitude",
        "variance_title": "Variance of the maps by depth",
        "variance_axis": "variance over the patches",
        "embedding": "embedding",
        "attention": "after attention",
        "mlp": "after MLP",
        "block": "after a block",
    },
    "ja": {
        "curves_title": "残差ストリームの周波数",
        "frequency": "空間周波数（× π / パッチ）",
        "amplitude": "対数振幅の差 Δ",
        "input": "入力側",
        "output": "出力側",
        "depth": "深さ（入力からのサブブロック数）",
        "amplitude_title": "最高周波数の振幅",
        "amplitude_axis": "対数振幅の差 Δ",
        "variance_title": "深さと特徴マップの分散",
        "variance_axis": "パッチ間の分散",
        "embedding": "埋め込み",
        "attention": "アテンションの後",
        "mlp": "MLPの後",
        "block": "ブロックの後",
    },
}


def fourier_curves(frequency: Sequence[Floats], log_amplitude: Sequence[Floats], *, language: Language = "en") -> Figure:
    """Draw the amplitude of every frequency relative to the mean, a curve for each sub-block, pale at the input, dark at the output.

    Args:
        frequency: of each sub-block (F,), in units of π.
        log_amplitude: of each sub-block (F,), 0 at frequency 0.
    """
    words = _WORDS[language]
    with house_style():
        figure = new_figure(_WIDTH_IN, 3.5)
        axes = axes_at(figure, 0.72, 0.6, _WIDTH_IN - 1.5, 2.45)
        axes.set_title(words["curves_title"], pad=8)
        for x, y, color in zip(frequency, log_amplitude, depth_colors(len(frequency))):
            axes.plot(x, y, color=color, linewidth=1.3, marker="o" if len(x) == 1 else None)
        axes.set_xlim(0, 1)
        axes.grid(axis="y")
        axes.set_xlabel(words["frequency"])
        axes.set_ylabel(words["amplitude"])
        bar = (_WIDTH_IN - 0.62, 0.75, 0.12, 2.15)
        ends = (words["input"], words["output"])
        draw_scale(figure, bar, depth_scale(), Normalize(0, 1), "", ticks=(0, 1), tick_labels=ends)
    return figure


def high_frequencies(at_highest: Floats, kinds: Sequence[str], *, language: Language = "en") -> Figure:
    """Draw Δ log amplitude at the highest frequency (S,) against depth; attention that lowers it smooths."""
    return _by_depth(at_highest, kinds, "amplitude", language)


def variance_by_depth(variance: Floats, kinds: Sequence[str], *, language: Language = "en") -> Figure:
    """Draw the variance of the maps (S,) against depth, from 0."""
    figure = _by_depth(variance, kinds, "variance", language)
    figure.axes[0].set_ylim(bottom=0)
    return figure


def _by_depth(values: Floats, kinds: Sequence[str], name: str, language: Language) -> Figure:
    words = _WORDS[language]
    with house_style():
        figure = new_figure(_WIDTH_IN, 3.3)
        axes = axes_at(figure, 0.75, 0.6, _WIDTH_IN - 0.9, 1.95)
        axes.set_title(words[f"{name}_title"], pad=28)
        depth = np.arange(len(values), dtype=np.float64)
        axes.plot(depth, values, color=SLATE_PALE, linewidth=1.2)
        _mark(axes, depth, np.asarray(values), kinds, words)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.03, 1.0), ncols=3, borderaxespad=0.2, columnspacing=1.0, handletextpad=0.2)
        axes.grid(axis="y")
        axes.set_xlabel(words["depth"])
        axes.set_ylabel(words[f"{name}_axis"])
    return figure


def _mark(axes: Axes, depth: Floats, values: Floats, kinds: Sequence[str], words: dict[str, str]) -> None:
    for kind, (marker, color) in _MARKS.items():
        chosen = np.array([each == kind for each in kinds])
        if chosen.any():
            axes.plot(depth[chosen], values[chosen], marker, color=color, markersize=4.5, label=words[kind])
