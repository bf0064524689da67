"""A map drawn over the image it belongs to: the image in pale grey, the map as one hue whose strength is the value."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from kawara.plots.style import CLAY, shortened

Floats = NDArray[np.floating[Any]]
ImageArray = NDArray[np.uint8]

_STRONGEST = 0.88  # the image is still seen under the highest value


def overlay(picture: ImageArray, values: Floats) -> ImageArray:
    """Return a map (h, w) drawn over a picture (H, W, 3), uint8 as well.

    The lowest value of the map is clear, the highest full; cells stay cells, no value between them is made up. A constant map is clear, and
    so is a value that is not finite.
    """
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    strength = np.where(np.isfinite(values), (values - low) / (high - low), 0.0) if high > low else np.zeros(values.shape)
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(picture.shape[:2], values.shape))
    cover = _STRONGEST * strength[rows][:, columns][:, :, None]
    ground = 0.35 + 0.65 * picture.mean(axis=2, keepdims=True) / 255
    return np.rint(255 * (ground * (1 - cover) + np.array(to_rgb(CLAY)) * cover)).astype(np.uint8)


def thumbnail(image_u8: ImageArray, side_px: int) -> ImageArray:
    """Return an image (H, W, 3) or (H, W, 1) as (H', W', 3) with the longer side `side_px`; a small one is enlarged pixel by pixel."""
    if image_u8.shape[2] == 1:
        image_u8 = image_u8.repeat(3, axis=2)
    height, width = image_u8.shape[:2]
    scale = side_px / max(height, width)
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image_u8).resize((max(1, round(width * scale)), max(1, round(height * scale))), method))


def show_picture(axes: Axes, picture: ImageArray) -> None:
    """Fill the axes with a picture, without ticks or frame."""
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def heading(figure: Figure, text: str, left_in: float) -> None:
    """Write a title into the upper left corner of a figure of pictures. `$` is escaped: names are no formulas."""
    width, height = figure.get_size_inches()
    text = shortened(text, width - 2 * left_in, 12)
    figure.text(left_in / width, 1 - 0.1 / height, text, ha="left", va="top", fontsize=11, fontweight="bold")
