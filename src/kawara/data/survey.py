"""A first look at a data set, from the headers of a few images: how large they are, and whether they are grey."""

from __future__ import annotations

import io
import statistics
from dataclasses import dataclass

from PIL import Image

from kawara.data.listing import Listing
from kawara.errors import DecodeError

NUM_SAMPLES = 100
_GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Survey:
    """What a choice of model needs to know. `shorter_side_px` is the median over the sample."""

    num_images: int
    num_classes: int
    shorter_side_px: int
    one_size: tuple[int, int] | None
    is_grey: bool


def survey(listing: Listing) -> Survey:
    """Look at up to 100 images spread over the listing; unreadable ones are passed over."""
    sizes: list[tuple[int, int]] = []
    grey: list[bool] = []
    for part in listing.arrays:
        sizes.append(part.images_u8.shape[1:3])
        grey.append(part.images_u8.shape[3] == 1)
    step = max(1, len(listing.records) // NUM_SAMPLES)
    for record in listing.records[::step]:
        try:
            with Image.open(io.BytesIO(record.read())) as image:
                sizes.append((image.height, image.width))
                grey.append(image.mode in _GREY_MODES)
        except (OSError, ValueError, SyntaxError, DecodeError, Image.DecompressionBombError):
            continue
    return Survey(
        num_images=listing.num_images,
        num_classes=len(listing.class_names),
        shorter_side_px=int(statistics.median(min(size) for size in sizes)) if sizes else 0,
        one_size=sizes[0] if sizes and len(set(sizes)) == 1 else None,
        is_grey=bool(grey) and all(grey),
    )
