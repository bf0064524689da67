"""Which pixels the centre of a layer depends on, from depth to depth (Raghu et al., arXiv 2108.08810)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kawara.plots.scales import SEQUENTIAL, draw_cells, draw_scale, short_names
from kawara.plots.style import SMALL_PT, Language, axes_at, house_style, new_figure, shortened

Floats = NDArray[np.floating[Any]]

_WIDTH_IN = 4.6
_DECADES = 3
_MAX_CELLS = 56
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "title": "Effective receptive field of the centre",
        "after": "stream",
        "before": "branch",
        "block": "block {}",
        "distance": "{:.0f} px",
        "scale": "gradient, relative to the strongest pixel of each tile",
    },
    "ja": {
        "title": "中心の有効受容野",
        "after": "残差後",
        "before": "残差前",
        "block": "ブロック{}",
        "distance": "{:.0f} px",
        "scale": "勾配の大きさ（各タイルの最大値に対する比）",
    },
}


def receptive_field_rows(
    after: Floats,
    names: Sequence[str],
    mean_distance_px: Sequence[float] | Floats,
    *,
    before: Floats | None = None,
    before_distance_px: Sequence[float] | Floats | None = None,
    language: Language = "en",
) -> Figure:
    """Draw the receptive fields of several depths side by side, in a second row those before the residual.

    Below each tile stands the mean distance of its pixels from the centre. The scale is logarithmic over three decades.

    Args:
        after, before: (S, H, W) gradients of the stream after the residual and of the branch before it.
        names: places of the S blocks.
        mean_distance_px, before_distance_px: (S,) in pixels of the model's input.
    """
    words = _WORDS[language]
    rows = [("after", after, mean_distance_px)]
    if before is not None and before_distance_px is not None:
        rows.append(("before", before, before_distance_px))
    height_px, width_px = after.shape[1:]
    left, gap, note = 0.35, 0.08, 0.26
    side = (_WIDTH_IN - left - 0.1 - gap * (len(names) - 1)) / len(names)
    tile = side * height_px / width_px
    height = len(rows) * (tile + note) + 1.45
    norm = Normalize(-_DECADES, 0)
    labels = [shortened(words["block"].format(name), side, SMALL_PT) for name in short_names(names)]
    with house_style():
        figure = new_figure(_WIDTH_IN, height)
        for i, (kind, gradients, distances) in enumerate(rows):
            for j, (gradient, distance) in enumerate(zip(gradients, distances)):
                axes = axes_at(figure, left + j * (side + gap), height - 0.62 - tile - i * (tile + note), side, tile)
                draw_cells(axes, _decades(_reduced(gradient)), SEQUENTIAL, norm)
                axes.set_xticks([])
                axes.set_yticks([])
                axes.set_xlabel(words["distance"].format(distance), fontsize=SMALL_PT, labelpad=3)
                if i == 0:
                    axes.set_title(labels[j], fontsize=SMALL_PT, fontweight="normal", pad=3)
                if j == 0:
                    axes.set_ylabel(words[kind], fontsize=SMALL_PT + 0.5, labelpad=4)
        figure.text(0.1 / _WIDTH_IN, 1 - 0.25 / height, words["title"], fontsize=11, fontweight="bold")
        ticks = list(range(-_DECADES, 1))
        shown = [f"{10.0**tick:g}" for tick in ticks]
        draw_scale(figure, (left, 0.45, _WIDTH_IN - left - 0.2, 0.12), SEQUENTIAL, norm, words["scale"], ticks=ticks, tick_labels=shown)
    return figure


def _reduced(gradient: Floats) -> Floats:
    """Return means over blocks of pixels so that a tile has at most 56 cells a side, about a pixel of a small screen each."""
    step = -(-max(gradient.shape) // _MAX_CELLS)
    height, width = (size // step * step for size in gradient.shape)
    return gradient[:height, :width].reshape(height // step, step, width // step, step).mean(axis=(1, 3))


def _decades(gradient: Floats) -> Floats:
    """Return the logarithm to base 10 of the gradient relative to its largest value, cut at the end of the scale."""
    largest = gradient.max()
    return np.log10(np.maximum(gradient / largest if largest > 0 else gradient, 10.0**-_DECADES))
