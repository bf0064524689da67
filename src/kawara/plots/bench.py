"""How fast models are in each run time, and what that speed costs in accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from kawara.plots.style import CLAY, INK, MUTED, SLATE, Language, axes_at, house_style, new_figure, nothing_to_draw, shortened

_RUN_TIMES: Mapping[str, tuple[str, str, str]] = {
    "torch": ("PyTorch", "o", SLATE),
    "compile": ("torch.compile", "D", "#6b8fae"),
    "onnx": ("ONNX Runtime", "s", CLAY),
    "openvino": ("OpenVINO", "^", INK),
}
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "latency": "Time for one batch",
        "ms": "milliseconds (line: median to 95th percentile)",
        "plane": "Accuracy and latency",
        "accuracy": "images right (%)",
        "median": "milliseconds, median",
        "none": "nothing measured",
    },
    "ja": {
        "latency": "1バッチの処理時間",
        "ms": "ミリ秒（線は中央値から95パーセンタイル）",
        "plane": "正解率と処理時間",
        "accuracy": "正解した画像の割合（%）",
        "median": "処理時間の中央値（ミリ秒）",
        "none": "測定がありません",
    },
}


@dataclass(frozen=True)
class Timing:
    """One model in one run time, in milliseconds; `accuracy` in [0, 1], where it is known."""

    model: str
    run_time: str
    p50_ms: float
    p95_ms: float
    accuracy: float | None = None


def run_time_name(name: str) -> str:
    """Return a run time as its makers write it."""
    return _RUN_TIMES[name][0]


def latencies(timings: Sequence[Timing], *, language: Language = "en") -> Figure:
    """Draw a row for each model and a mark for each run time; the axis is logarithmic, so that a distance is a ratio."""
    words = _WORDS[language]
    names = list(dict.fromkeys(timing.model for timing in timings))
    with house_style():
        height = 0.42 * max(1, len(names))
        figure = new_figure(6.4, height + 1.65)
        axes = axes_at(figure, 1.9, 0.6, 4.2, height)
        axes.set_title(words["latency"], pad=30)
        if not timings:
            nothing_to_draw(axes, words["none"])
            return figure
        for name, (label, marker, color) in _RUN_TIMES.items():
            drawn = [timing for timing in timings if timing.run_time == name]
            rows = [names.index(timing.model) for timing in drawn]
            for timing, row in zip(drawn, rows):
                axes.plot([timing.p50_ms, max(timing.p50_ms, timing.p95_ms)], [row, row], color=color, linewidth=1.4, alpha=0.55)
            if drawn:
                axes.plot(
                    [timing.p50_ms for timing in drawn], rows, linestyle="none", marker=marker, color=color, markersize=7, label=label
                )
        axes.set_xscale("log")
        low, high = min(timing.p50_ms for timing in timings), max(timing.p95_ms for timing in timings)
        axes.set_xlim(low / 1.25, high * 1.25)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(names)), [shortened(name, 1.75, 9) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel(words["ms"], fontsize=9)
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, borderaxespad=0.2, columnspacing=1.0, fontsize=8.5, handletextpad=0.2
        )
    return figure


def accuracy_plane(timings: Sequence[Timing], *, language: Language = "en") -> Figure:
    """Draw accuracy against latency; better lies to the upper left. A thin line joins what nothing else beats in both."""
    words = _WORDS[language]
    known = [timing for timing in timings if timing.accuracy is not None]
    with house_style():
        figure = new_figure(6.4, 4.0)
        axes = axes_at(figure, 0.78, 0.6, 5.3, 2.6)
        axes.set_title(words["plane"], pad=30)
        if not known:
            nothing_to_draw(axes, words["none"])
            return figure
        front = _front(known)
        axes.plot(
            [timing.p50_ms for timing in front], [100 * (timing.accuracy or 0) for timing in front], color=MUTED, linewidth=1, zorder=1
        )
        for name, (label, marker, color) in _RUN_TIMES.items():
            drawn = [timing for timing in known if timing.run_time == name]
            if drawn:
                axes.plot(
                    [timing.p50_ms for timing in drawn],
                    [100 * (timing.accuracy or 0) for timing in drawn],
                    linestyle="none",
                    marker=marker,
                    color=color,
                    markersize=7,
                    label=label,
                )
        for name in dict.fromkeys(timing.model for timing in known):
            fastest = min((timing for timing in known if timing.model == name), key=lambda timing: timing.p50_ms)
            place = (fastest.p50_ms, 100 * (fastest.accuracy or 0))
            axes.annotate(shortened(name, 2.2, 8.5), place, (0, 9), textcoords="offset points", ha="left", fontsize=8.5, color=INK)
        values = [100 * (timing.accuracy or 0) for timing in known]
        middle, span = (max(values) + min(values)) / 2, max(2.0, max(values) - min(values))
        axes.set_ylim(max(0.0, middle - 0.8 * span), min(102.0, middle + 0.9 * span))
        axes.set_xlim(0, 1.25 * max(timing.p50_ms for timing in known))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid()
        axes.set_xlabel(words["median"], fontsize=9)
        axes.set_ylabel(words["accuracy"])
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, borderaxespad=0.2, columnspacing=1.0, fontsize=8.5, handletextpad=0.2
        )
    return figure


def _front(timings: Sequence[Timing]) -> list[Timing]:
    """Return those that no other beats in both latency and accuracy, by latency."""
    front: list[Timing] = []
    for timing in sorted(timings, key=lambda timing: (timing.p50_ms, -(timing.accuracy or 0))):
        if not front or (timing.accuracy or 0) > (front[-1].accuracy or 0):
            front.append(timing)
    return front
