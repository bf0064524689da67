"""How alike the layers of one or two models are: the CKA map (Raghu et al., arXiv 2108.08810, figs. 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kawara.plots.scales import SEQUENTIAL, draw_cells, draw_scale, layer_ticks
from kawara.plots.style import FONT_PT, SMALL_PT, Language, axes_at, house_style, new_figure, nothing_to_draw, shortened, text_width_in

Floats = NDArray[np.floating[Any]]

_WIDTH_IN = 4.6
_MIN_SIDE_IN = 1.2
_RIGHT_IN = 0.75
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "title": "Similarity of the layers",
        "layers": "layers",
        "layers_of": "layers of {}",
        "scale": "CKA",
        "none": "no layers",
    },
    "ja": {
        "title": "層どうしの類似度",
        "layers": "層",
        "layers_of": "{}の層",
        "scale": "CKA",
        "none": "層がありません",
    },
}


def cka_map(
    cka: Floats,
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    row_model: str = "",
    column_model: str | None = None,
    language: Language = "en",
) -> Figure:
    """Draw the CKA of every pair of layers, the input at the lower left; the scale is always 0 to 1.

    Args:
        cka: (rows, columns). Values below 0, which the unbiased estimate has for unrelated layers, are drawn as 0; NaN is blank.
        row_names, column_names: places, such as blocks.0.attn; the ticks name blocks.
        row_model, column_model: names of the models; `column_model` None is the same model.
    """
    cka = np.asarray(cka, dtype=np.float64)
    words = _WORDS[language]
    with house_style():
        if not cka.size:
            figure = new_figure(4.5, 2.5)
            nothing_to_draw(axes_at(figure, 0, 0, 4.5, 2.5), words["none"])
            return figure
        left = 0.5 + max(text_width_in(label, SMALL_PT) for label in layer_ticks(row_names, max_ticks=len(row_names))[1])
        longer = _WIDTH_IN - left - _RIGHT_IN
        height, width = (max(_MIN_SIDE_IN, longer * count / max(cka.shape)) for count in cka.shape)
        rows, row_labels = layer_ticks(row_names, max_ticks=max(3, int(height / 0.2)))
        columns, column_labels = layer_ticks(column_names, max_ticks=max(3, int(width / 0.2)))
        widest = max(text_width_in(label, SMALL_PT) for label in column_labels)
        upright = widest > 0.9 * width / len(columns)
        bottom = 0.5 + (widest if upright else 0.15)
        figure = new_figure(left + width + _RIGHT_IN, bottom + height + 0.45)
        axes = axes_at(figure, left, bottom, width, height)
        draw_cells(axes, np.clip(cka, 0, 1), SEQUENTIAL, Normalize(0, 1), origin="lower")
        axes.set_title(words["title"], pad=8)
        axes.set_xticks(columns, column_labels, fontsize=SMALL_PT, rotation=90 if upright else 0)
        axes.set_yticks(rows, row_labels, fontsize=SMALL_PT)
        axes.set_xlabel(_of_model(row_model if column_model is None else column_model, width, words))
        axes.set_ylabel(_of_model(row_model, height, words))
        draw_scale(figure, (left + width + 0.12, bottom, 0.14, height), SEQUENTIAL, Normalize(0, 1), words["scale"])
    return figure


def _of_model(model: str, side_in: float, words: dict[str, str]) -> str:
    """Return what an axis of this length says: the layers of a model, or its name alone where there is no room for more."""
    text = words["layers_of"].format(model) if model else words["layers"]
    return shortened(text if text_width_in(text, FONT_PT) <= side_in else model, side_in, FONT_PT)
