"""What all pages share: the templates, and pictures that travel inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from kawara.plots.style import POINTS_PER_INCH, to_svg

SMALL_IMAGE_PX = 64
LARGEST_IMAGE_PX = 200
MAX_IMAGE_BYTES = 22_000
CSS_PX_PER_POINT = 1.12


def render(template: str, **values: Any) -> str:
    """Return a page from a template in this folder; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def figure_source(figure: Figure) -> dict[str, Any]:
    """Return a figure as `source` (data URI of an SVG, whose identifiers cannot clash with those of another) and `width_px`."""
    width, height = figure.get_size_inches() * POINTS_PER_INCH * CSS_PX_PER_POINT
    return {"source": data_uri("image/svg+xml", to_svg(figure).encode()), "width_px": round(width), "height_px": round(height)}


def image_source(image_u8: NDArray[np.uint8]) -> dict[str, Any]:
    """Return an image as `source`, a data URI, and `is_small`, to be shown with its pixels visible.

    Images up to 64 px are kept as they are (PNG); larger ones are reduced to 200 px and compressed (JPEG).

    Args:
        image_u8: (H, W), (H, W, 1) or (H, W, 3) uint8.
    """
    pixels = image_u8[:, :, 0] if image_u8.ndim == 3 and image_u8.shape[2] == 1 else image_u8
    image = Image.fromarray(np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    if max(image.size) <= SMALL_IMAGE_PX:
        image.save(buffer, "PNG", optimize=True)
        return {"source": data_uri("image/png", buffer.getvalue()), "is_small": True}
    image.thumbnail((LARGEST_IMAGE_PX, LARGEST_IMAGE_PX), Image.Resampling.LANCZOS)
    for quality in (85, 70, 50, 30):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
        if buffer.tell() <= MAX_IMAGE_BYTES:
            break
    return {"source": data_uri("image/jpeg", buffer.getvalue()), "is_small": False}


def data_uri(media_type: str, content: bytes) -> str:
    """Return a file as an address that holds all of it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
