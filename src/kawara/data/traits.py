"""What is unusual about an image file, from its header: nothing of it keeps the file from being used.

JPEG headers are walked here, because opening 50,000 of them in Pillow takes as long as decoding them; every other format is opened by
Pillow, which reads the header alone.
"""

from __future__ import annotations

import enum
import io
import os
import warnings
from typing import Any

from PIL import Image

from kawara.data.decode import FORMATS, orientation_of


class Trait(enum.IntFlag):
    """What there is to say about a file that can be used."""

    ROTATED = enum.auto()
    CMYK = enum.auto()
    MORE_THAN_8_BITS = enum.auto()
    PALETTE = enum.auto()
    TRANSPARENT = enum.auto()
    GREY = enum.auto()
    ANIMATED = enum.auto()
    SEVERAL_PAGES = enum.auto()
    WRONG_SUFFIX = enum.auto()
    BLANK = enum.auto()
    """All pixels are alike; known only after decoding."""


NO_TRAITS = Trait(0)
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "DIB": (".bmp", ".dib"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "AVIF": (".avif",),
    "ICO": (".ico",),
    "QOI": (".qoi",),
    "PCX": (".pcx",),
    "SGI": (".sgi",),
}
_GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_FRAMES = range(0xC0, 0xD0)  # start-of-frame markers, but for three that mean something else
_NO_FRAMES = (0xC4, 0xC8, 0xCC)
_PNG = b"\x89PNG\r\n\x1a\n"


def examine(data: bytes, name: str) -> tuple[Trait, tuple[int, int]]:
    """Return the traits of a file that was decoded, and its (height, width) as stored; (0, 0) where the header cannot be understood."""
    try:
        if data[:2] == b"\xff\xd8":
            return _examine_jpeg(data, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _examine_other(data, name)
    except Exception:  # what is wrong with it was said by the decoder
        return NO_TRAITS, (0, 0)


def has_suffix_of(image_format: str, name: str) -> bool:
    """Tell whether `name` ends as files of this format do; a name without suffix does."""
    suffix = os.path.splitext(name)[1].lower()
    return not suffix or image_format not in _SUFFIXES or suffix in _SUFFIXES[image_format]


def _examine_jpeg(data: bytes, name: str) -> tuple[Trait, tuple[int, int]]:
    traits = NO_TRAITS if has_suffix_of("JPEG", name) else Trait.WRONG_SUFFIX
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + length]
        if marker == 0xE1 and orientation_of(Image.open(io.BytesIO(data), formats=("JPEG",))) != 1:
            traits |= Trait.ROTATED
        elif marker == 0xE2 and segment.startswith(b"MPF\0"):
            traits |= Trait.SEVERAL_PAGES
        elif marker in _FRAMES and marker not in _NO_FRAMES:
            precision, num_components = segment[0], segment[5]
            traits |= Trait.MORE_THAN_8_BITS if precision > 8 else NO_TRAITS
            traits |= {1: Trait.GREY, 4: Trait.CMYK}.get(num_components, NO_TRAITS)
            return traits, (int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big"))
        elif marker == 0xDA:
            break
        position += 2 + length
    return traits, (0, 0)


def _examine_other(data: bytes, name: str) -> tuple[Trait, tuple[int, int]]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image_format = image.format or ""
        has = {
            Trait.ROTATED: orientation_of(image) != 1,
            Trait.CMYK: image.mode == "CMYK",
            Trait.MORE_THAN_8_BITS: _num_bits(image, data) > 8,
            Trait.PALETTE: image.mode in ("P", "PA") and image_format != "GIF",  # every GIF has one
            Trait.TRANSPARENT: image.has_transparency_data,
            Trait.GREY: image.mode in _GREY_MODES,
            Trait.WRONG_SUFFIX: not has_suffix_of(image_format, name),
        }
        several = Trait.SEVERAL_PAGES if image_format in ("TIFF", "ICO") else Trait.ANIMATED
        size = (image.height, image.width)
        has[several] = bool(getattr(image, "is_animated", False))  # last: it moves to the second picture and back
    traits = NO_TRAITS
    for trait, is_there in has.items():
        traits |= trait if is_there else NO_TRAITS
    return traits, size


def _num_bits(image: Image.Image, data: bytes) -> int:
    """Return the bits of one channel; for PNG from the file, since Pillow keeps 8 of the 16 bits of a colour."""
    if data[:8] == _PNG:
        return data[24]
    tags: Any = getattr(image, "tag_v2", {})
    if image.format == "TIFF":
        return max(tags.get(258, (1,)))
    return 16 if image.mode in ("I", "F") or image.mode.startswith("I;16") else 8
