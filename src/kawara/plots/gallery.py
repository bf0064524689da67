"""Images in a grid with a caption under each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .style import INK, LINE, axes_at, house_style, new_figure, nothing_to_draw, shortened

SMALL_IMAGE_PX = 64

_TILE_IN, _GAP_IN, _CAPTION_LINE_IN, _CAPTION_PT = 1.5, 0.2, 0.17, 8.5


def gallery(
    images: Sequence[NDArray[np.uint8]], captions: Sequence[str], *, columns: int = 6, caption_colors: Sequence[str] | None = None
) -> Figure:
    """Draw images at one tile size; those under 64 px with their pixels visible.

    Args:
        images: (H, W, 1 or 3) or (H, W) uint8, sizes may differ.
        captions: one for each image, of one or more lines; lines that are too long are cut.
        caption_colors: one for each image.
    """
    colors = caption_colors or [INK] * len(images)
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    row_in = _TILE_IN + lines * _CAPTION_LINE_IN + _GAP_IN
    with house_style():
        figure = new_figure(columns * (_TILE_IN + _GAP_IN) + _GAP_IN, rows * row_in + _GAP_IN)
        if not images:
            nothing_to_draw(axes_at(figure, 0, 0, _TILE_IN + 2 * _GAP_IN, row_in), "no images")
        for place, (image, caption, color) in enumerate(zip(images, captions, colors)):
            row, column = divmod(place, columns)
            axes = axes_at(figure, _GAP_IN + column * (_TILE_IN + _GAP_IN), (rows - row) * row_in - _TILE_IN, _TILE_IN, _TILE_IN)
            pixels: Any = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
            small = max(pixels.shape[:2]) < SMALL_IMAGE_PX
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if small else "antialiased")
            axes.set_anchor("S")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(True)
                spine.set_color(LINE)
            text = "\n".join(shortened(line, _TILE_IN, _CAPTION_PT) for line in caption.split("\n"))
            axes.annotate(
                text, (0, 0), (0, -4), xycoords="axes fraction", textcoords="offset points", va="top", fontsize=_CAPTION_PT, color=color
            )
    return figure
