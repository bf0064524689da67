"""What a colour stands for: the scales of heat maps, their bars, and the names along an axis of layers.

One scale from pale to dark for amounts, one from clay over paper to slate for what has a sign or a turning point. Lightness alone orders
the first and tells the strength of the second, so that both survive every kind of colour vision and a grey printer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kawara.plots.style import CLAY, PAPER, SLATE, SMALL_PT, WASH, axes_at, shortened

Floats = NDArray[np.floating[Any]]

SEQUENTIAL = LinearSegmentedColormap.from_list("amount", ["#fbf7ea", "#cfdcd5", "#8fb3bd", "#56849f", SLATE, "#17273d"]).with_extremes(
    bad=WASH
)
DIVERGING = LinearSegmentedColormap.from_list("sign", ["#6e2a10", CLAY, "#efb79d", PAPER, "#b3c7d8", SLATE, "#142a40"]).with_extremes(
    bad=WASH
)

MAX_TICKS = 12
_DEPTH_RANGE = (0.3, 1.0)  # paler lines would not stand out from the paper


def depth_colors(count: int) -> list[Any]:
    """Return one colour for each of `count` depths, pale at the input, dark at the output."""
    return [SEQUENTIAL(place) for place in np.linspace(*_DEPTH_RANGE, count)]


def depth_scale() -> Colormap:
    """Return the colours of `depth_colors` as a scale."""
    return LinearSegmentedColormap.from_list("depth", depth_colors(64))


def draw_cells(axes: Axes, values: Floats, scale: Colormap, norm: Normalize, *, origin: str = "upper", aspect: str = "auto") -> AxesImage:
    """Draw an array (rows, columns) as cells with sharp edges; NaN is left blank."""
    axes.tick_params(length=0, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    # "none", not "nearest": an SVG then holds the cells themselves, not the pixels of one resolution.
    return axes.imshow(values, cmap=scale, norm=norm, origin=origin, aspect=aspect, interpolation="none")  # type: ignore[arg-type]


def draw_scale(
    figure: Figure,
    place_in: tuple[float, float, float, float],
    scale: Colormap,
    norm: Normalize,
    label: str,
    *,
    ticks: Sequence[float] | None = None,
    tick_labels: Sequence[str] | None = None,
) -> None:
    """Draw what the colours stand for, in a bar at (left, bottom, width, height) inches: upright or lying, whichever is longer."""
    axes = axes_at(figure, *place_in)
    orientation = "vertical" if place_in[3] > place_in[2] else "horizontal"
    bar = figure.colorbar(ScalarMappable(norm, scale), cax=axes, orientation=orientation)
    bar.outline.set_visible(False)  # type: ignore[union-attr]
    bar.minorticks_off()
    if ticks is None:
        bar.locator = MaxNLocator(5)
        bar.update_ticks()
    else:
        bar.set_ticks(list(ticks), labels=None if tick_labels is None else list(tick_labels))
    bar.ax.tick_params(length=0, pad=3, labelsize=SMALL_PT)
    bar.set_label(label, fontsize=SMALL_PT + 0.5, labelpad=3)


def short_names(names: Sequence[str]) -> list[str]:
    """Return the names of layers without the parts that all of them share: blocks.0, blocks.1 become 0, 1."""
    parts = [name.split(".") for name in names]
    if len(names) < 2 or len({len(each) for each in parts}) > 1:
        return list(names)
    differing = [index for index in range(len(parts[0])) if len({each[index] for each in parts}) > 1]
    return [".".join(each[index] for index in differing) for each in parts]


def layer_ticks(names: Sequence[str], max_ticks: int = MAX_TICKS, width_in: float = 0.6) -> tuple[list[int], list[str]]:
    """Return where to put ticks along layers and what to write there: the blocks, not their parts, at most `max_ticks` of them."""
    known = set(names)
    whole = [index for index, name in enumerate(names) if name.rpartition(".")[0] not in known]
    step = -(-len(whole) // max_ticks)
    labels = short_names([names[index] for index in whole])
    return whole[::step], [shortened(label, width_in, SMALL_PT) for label in labels[::step]]
