"""Loss, accuracy and learning rate over a run, from its journal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from kawara.plots.style import CLAY, SLATE, SLATE_PALE, Language, axes_at, house_style, new_figure, nothing_to_draw

Floats = NDArray[np.float64]
XAxis = Literal["epoch", "minutes"]
Panel = Literal["loss", "accuracy", "lr"]
PANELS: tuple[Panel, ...] = ("loss", "accuracy", "lr")

MAX_POINTS = 600
SMOOTH_FROM_POINTS = 80
MIN_ACCURACY_SPAN = 5.0

_PANEL_WIDTH_IN, _PANEL_HEIGHT_IN = 4.5, 3.3
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "epoch": "epochs",
        "minutes": "minutes",
        "step": "optimiser steps",
        "loss": "Loss",
        "loss_axis": "loss (nats per image)",
        "accuracy": "Accuracy",
        "accuracy_axis": "images right (%)",
        "lr": "Learning rate",
        "lr_axis": "learning rate (× 10⁻³)",
        "train": "training",
        "validation": "validation",
        "best": "best {:.1f} %",
        "none": "nothing recorded",
    },
    "ja": {
        "epoch": "エポック",
        "minutes": "経過時間（分）",
        "step": "更新回数（ステップ）",
        "loss": "損失",
        "loss_axis": "損失（nat/画像）",
        "accuracy": "正解率",
        "accuracy_axis": "正解した画像の割合（%）",
        "lr": "学習率",
        "lr_axis": "学習率（× 10⁻³）",
        "train": "学習",
        "validation": "検証",
        "best": "最高 {:.1f}%",
        "none": "記録がありません",
    },
}


def training_curves(records: Sequence[dict[str, Any]], *, x: XAxis = "epoch", language: Language = "en") -> Figure:
    """Draw loss, accuracy and learning rate side by side.

    Args:
        records: lines of the journal; those with the event "train" or "validation" are drawn. Values may be missing or None.
            A step that was recorded twice (a run resumed by hand) counts as it was recorded last.
        x: what runs along the horizontal axis; where the journal does not have it, optimiser steps do.
    """
    with house_style():
        figure = new_figure(_PANEL_WIDTH_IN * len(PANELS), _PANEL_HEIGHT_IN)
        for column, panel in enumerate(PANELS):
            _draw(_panel_axes(figure, column), panel, records, x, _WORDS[language])
    return figure


def training_curve(records: Sequence[dict[str, Any]], panel: Panel, *, x: XAxis = "epoch", language: Language = "en") -> Figure:
    """Draw one panel of `training_curves` as a figure of its own."""
    with house_style():
        figure = new_figure(_PANEL_WIDTH_IN, _PANEL_HEIGHT_IN)
        _draw(_panel_axes(figure, 0), panel, records, x, _WORDS[language])
    return figure


@dataclass(frozen=True)
class _Track:
    """One event of the journal as columns, by step. `x` (n,) lies on the axis called `x_name`."""

    x: Floats
    x_name: str
    records: list[dict[str, Any]]

    def column(self, name: str) -> tuple[Floats, Floats]:
        """Return x and values (m ≤ n,) of the records that have `name` as a finite number."""
        values = np.array([_number(record.get(name)) for record in self.records], dtype=np.float64)
        kept = np.isfinite(values) & np.isfinite(self.x)
        return self.x[kept], values[kept]


def _panel_axes(figure: Figure, column: int) -> Axes:
    return axes_at(figure, column * _PANEL_WIDTH_IN + 0.76, 0.6, _PANEL_WIDTH_IN - 0.96, _PANEL_HEIGHT_IN - 1.25)


def _draw(axes: Axes, panel: Panel, records: Sequence[dict[str, Any]], x: XAxis, words: dict[str, str]) -> None:
    train, validation = _tracks(records, x)
    axes.set_title(words[panel], pad=28)
    scale = {"loss": 1.0, "accuracy": 100.0, "lr": 1000.0}[panel]
    train_x, train_y = train.column(panel)
    validation_name = {"loss": "nll", "accuracy": "top1", "lr": ""}[panel]
    validation_x, validation_y = validation.column(validation_name)
    if not len(train_x) and not len(validation_x):
        nothing_to_draw(axes, words["none"])
        return

    if panel == "lr":
        axes.plot(*_thinned(train_x, train_y * scale), color=SLATE, marker=_marker(train_x))
    else:
        if len(train_x) >= SMOOTH_FROM_POINTS:
            axes.plot(*_thinned(train_x, train_y * scale), color=SLATE_PALE, linewidth=0.8, alpha=0.7)
            train_y = _smoothed(train_y)
        axes.plot(*_thinned(train_x, train_y * scale), color=SLATE, label=words["train"], marker=_marker(train_x))
        if len(validation_x):
            label = words["validation"]
            if panel == "accuracy":
                best = int(len(validation_y) - 1 - np.argmax(validation_y[::-1]))  # of equals the last, as the run keeps it
                label += f" ({words['best'].format(validation_y[best] * scale)})"
                axes.plot(validation_x[best], validation_y[best] * scale, "o", markersize=8, markerfacecolor="none", color=CLAY)
            axes.plot(*_thinned(validation_x, validation_y * scale), color=CLAY, label=label, marker="o", markersize=3.5, linewidth=1.4)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2, columnspacing=1.4)
    axes.grid(axis="y")
    axes.set_xlabel(words[train.x_name])
    axes.set_ylabel(words[f"{panel}_axis"])
    axes.yaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=train.x_name != "minutes" and axes.get_xlim()[1] > 3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
    _limit(axes, panel)


def _limit(axes: Axes, panel: Panel) -> None:
    """Start the axes where reading is honest: time at 0, the learning rate at 0, accuracy never beyond 0-100 %."""
    axes.set_xlim(left=0.0)
    if panel == "accuracy":
        low, high = axes.get_ylim()
        if high - low < MIN_ACCURACY_SPAN:
            low, high = low - MIN_ACCURACY_SPAN / 2, high + MIN_ACCURACY_SPAN / 2
        axes.set_ylim(max(low, 0.0), min(high, 101.5))
    elif panel == "lr" or axes.get_ylim()[0] < 0.25 * axes.get_ylim()[1]:
        axes.set_ylim(bottom=0.0)


def _tracks(records: Sequence[dict[str, Any]], x: XAxis) -> tuple[_Track, _Track]:
    """Return the training and the validation track on one horizontal axis."""
    of_event: dict[str, dict[float, dict[str, Any]]] = {"train": {}, "validation": {}}
    for record in records:
        step = _number(record.get("step"))
        if record.get("event") in of_event and math.isfinite(step):
            of_event[record["event"]][step] = record
    x_name, place = _horizontal([*of_event["train"].values(), *of_event["validation"].values()], x)
    tracks = []
    for by_step in of_event.values():
        ordered = [by_step[step] for step in sorted(by_step)]
        tracks.append(_Track(np.array([place(record) for record in ordered], dtype=np.float64), x_name, ordered))
    return tracks[0], tracks[1]


def _horizontal(records: list[dict[str, Any]], x: XAxis) -> tuple[str, Callable[[dict[str, Any]], float]]:
    """Return the name of the horizontal axis and the place of a record on it."""
    if x == "minutes" and all(math.isfinite(_number(record.get("seconds"))) for record in records):
        return "minutes", lambda record: _number(record["seconds"]) / 60
    # Validation records carry no epoch; it grows with the step, so that any training record gives the ratio.
    ratios = [_number(record.get("epoch")) / record["step"] for record in records if record["step"] > 0]
    known = [ratio for ratio in ratios if math.isfinite(ratio) and ratio > 0]
    if x == "epoch" and known:
        return "epoch", lambda record: record["step"] * known[-1]
    return "step", lambda record: float(record["step"])


def _smoothed(values: Floats) -> Floats:
    """Return a running mean over a fortieth of the points; at the ends over those there are."""
    window = np.ones(max(3, len(values) // 40 | 1))
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return at most MAX_POINTS of the points, the first and the last among them."""
    if len(x) <= MAX_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int))
    return x[kept], y[kept]


def _marker(x: Floats) -> str | None:
    """Return a dot for a single point, which as a line would not be seen."""
    return "o" if len(x) == 1 else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
