"""Several curves in one panel, told apart by colour, dash and marker: any one of the three is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kawara.plots.style import CLAY, INK, MUTED, SLATE

Floats = NDArray[np.floating[Any]]

_LOOKS: tuple[tuple[str, Any, str], ...] = (
    (SLATE, "-", "o"),
    (CLAY, (0, (5, 2)), "s"),
    (INK, (0, (1.2, 1.6)), "^"),
    ("#6b8fae", (0, (6, 2, 1.2, 2)), "D"),
    (MUTED, (0, (3, 1, 1, 1, 1, 1)), "v"),
)
MAX_LINES = len(_LOOKS)


@dataclass(frozen=True)
class Line:
    """One curve: x and y (n,), and how far the values spread to either side (n,), NaN where that is not known."""

    label: str
    x: Floats
    y: Floats
    spread: Floats | None = None


def draw_lines(axes: Axes, lines: Sequence[Line], *, percent: bool = False) -> None:
    """Draw up to five lines with a pale band where they spread; `percent` multiplies by 100."""
    assert len(lines) <= MAX_LINES, f"at most {MAX_LINES} lines can be told apart, got {len(lines)}"
    scale = 100.0 if percent else 1.0
    for line, (color, dash, marker) in zip(lines, _LOOKS):
        x, y = np.asarray(line.x, np.float64), scale * np.asarray(line.y, np.float64)
        if line.spread is not None:
            spread = scale * np.nan_to_num(np.asarray(line.spread, np.float64))
            axes.fill_between(x, y - spread, y + spread, color=color, alpha=0.18, linewidth=0)
        axes.plot(x, y, color=color, linestyle=dash, marker=marker, markersize=4, linewidth=1.6, label=line.label)


def title_and_legend(axes: Axes, title: str, *, columns: int = 3) -> None:
    """Put the names of the lines above the panel, where no line can run through them, and the title above these.

    Wants 0.65 inches above the panel for up to three lines, 0.85 for more.
    """
    num_lines = len(axes.get_legend_handles_labels()[1])
    axes.set_title(title, pad=12 + 16 * -(-num_lines // columns))
    if num_lines:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, borderaxespad=0.2, columnspacing=1.2, fontsize=8.5)


def shared_legend(figure: Figure, axes: Axes, left_in: float) -> None:
    """Put one legend for all panels, made from the lines of one of them, in a row at the top of the figure."""
    handles, labels = axes.get_legend_handles_labels()
    place = (left_in / figure.get_figwidth(), 1 - 0.06 / figure.get_figheight())
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=place, ncols=len(labels), borderaxespad=0, handlelength=2.4)
