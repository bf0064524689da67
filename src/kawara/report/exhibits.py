"""A figure with its words and its numbers: on the page, as PNG beside it, and as JSON and npz for whoever wants to compute further."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from kawara.plots.style import POINTS_PER_INCH, Language, to_png
from kawara.report.page import CSS_PX_PER_POINT, data_uri, figure_source
from kawara.report.wording import Text

LANGUAGES: tuple[Language, ...] = ("en", "ja")
PHOTO_DPI = 125
PHOTO_QUALITY = 76
LARGEST_JSON_ARRAY = 512
"""Arrays of more numbers go to an npz beside the JSON."""


@dataclass(frozen=True)
class Exhibit:
    """One figure. `name` is that of its files; `numbers` is what it was drawn from."""

    name: str
    draw: Callable[[Language], Figure]
    alt: Text
    caption: Text
    numbers: Mapping[str, Any]
    has_photos: bool = False
    """Then it is a picture of its own on the page (WebP): photos are too large for SVG."""
    folded: bool = False
    """Behind a click: one of many of its kind."""


@dataclass(frozen=True)
class Section:
    """A part of the page: what it is about, figures, and what could not be had, with the reason."""

    key: str
    title: Text
    lead: Text
    exhibits: list[Exhibit] = field(default_factory=list)
    absent: list[Text] = field(default_factory=list)


@dataclass(frozen=True)
class Drawn:
    """An exhibit as the page shows it: `sources` by language, as `figure_source` gives them."""

    exhibit: Exhibit
    sources: dict[Language, dict[str, Any]]


def publish(exhibit: Exhibit, folder: Path, language: Language) -> Drawn:
    """Draw an exhibit in both languages; write its PNG in one of them, and its numbers, below `folder`."""
    sources = {}
    for each in LANGUAGES:
        figure = exhibit.draw(each)
        sources[each] = photo_source(figure) if exhibit.has_photos else figure_source(figure)
        if each == language:
            (folder / "figures" / f"{exhibit.name}.png").write_bytes(to_png(figure))
    write_numbers(folder / "numbers", exhibit.name, exhibit.numbers)
    return Drawn(exhibit, sources)


def photo_source(figure: Figure) -> dict[str, Any]:
    """Return a figure as `figure_source` does, as a picture instead of a drawing."""
    width, height = figure.get_size_inches() * POINTS_PER_INCH * CSS_PX_PER_POINT
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(to_png(figure, dpi=PHOTO_DPI))) as picture:
        picture.convert("RGB").save(buffer, "WEBP", quality=PHOTO_QUALITY)
    return {"source": data_uri("image/webp", buffer.getvalue()), "width_px": round(width), "height_px": round(height)}


def write_numbers(folder: Path, name: str, numbers: Mapping[str, Any]) -> None:
    """Write NAME.json, and NAME.npz with the arrays that are too long for it; the JSON says which. What is not finite becomes null."""
    arrays = {key: value for key, value in numbers.items() if isinstance(value, np.ndarray) and value.size > LARGEST_JSON_ARRAY}
    values = {
        key: {"array_in": f"{name}.npz", "shape": list(value.shape)} if key in arrays else as_json(value) for key, value in numbers.items()
    }
    (folder / f"{name}.json").write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    if arrays:
        np.savez_compressed(folder / f"{name}.npz", allow_pickle=False, **arrays)


def as_json(value: Any) -> Any:
    """Return arrays as lists, records as objects, and null for what is not finite."""
    if isinstance(value, np.ndarray | np.generic):
        return as_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json({each.name: getattr(value, each.name) for each in dataclasses.fields(value)})
    return value
