"""What headers say, against files that were made to have it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kawara.data.traits import NO_TRAITS, Trait, examine, has_suffix_of

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
GREY = RGB.convert("L")
WIDE = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)


def encoded(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, image_format, **options)
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 8
    return exif


def with_alpha() -> Image.Image:
    image = RGB.copy()
    image.putalpha(GREY)
    return image


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (encoded(RGB, "JPEG"), "a.jpg", NO_TRAITS),
        (encoded(RGB, "JPEG", progressive=True), "a.JPEG", NO_TRAITS),
        (encoded(RGB, "JPEG", exif=turned()), "a.jpg", Trait.ROTATED),
        (encoded(GREY, "JPEG"), "a.jpg", Trait.GREY),
        (encoded(RGB.convert("CMYK"), "JPEG"), "a.jpg", Trait.CMYK),
        (encoded(RGB, "MPO", save_all=True, append_images=[RGB.copy()]), "a.jpg", Trait.SEVERAL_PAGES),
        (encoded(RGB, "JPEG"), "a.png", Trait.WRONG_SUFFIX),
        (encoded(RGB, "PNG"), "a.png", NO_TRAITS),
        (encoded(RGB, "PNG"), "a.jpg", Trait.WRONG_SUFFIX),
        (encoded(RGB, "PNG", exif=turned()), "a.png", Trait.ROTATED),
        (encoded(RGB.quantize(8), "PNG"), "a.png", Trait.PALETTE),
        (encoded(with_alpha(), "PNG"), "a.png", Trait.TRANSPARENT),
        (encoded(WIDE, "PNG"), "a.png", Trait.MORE_THAN_8_BITS | Trait.GREY),
        (encoded(GREY, "PNG"), "a.png", Trait.GREY),
        (encoded(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180)]), "a.png", Trait.ANIMATED),
        (encoded(RGB, "GIF"), "a.gif", NO_TRAITS),
        (encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(180)]), "a.gif", Trait.ANIMATED),
        (encoded(RGB, "WEBP"), "a.webp", NO_TRAITS),
        (encoded(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)]), "a.webp", Trait.ANIMATED),
        (encoded(WIDE, "TIFF"), "a.tif", Trait.MORE_THAN_8_BITS | Trait.GREY),
        (encoded(RGB, "TIFF", save_all=True, append_images=[RGB.copy()]), "a.tiff", Trait.SEVERAL_PAGES),
        (encoded(WIDE, "PPM"), "a.pgm", Trait.MORE_THAN_8_BITS | Trait.GREY),
        (encoded(RGB, "BMP"), "a.bmp", NO_TRAITS),
    ],
)
def test_what_a_header_says(data, name, expected):
    traits, size = examine(data, name)
    assert traits == expected
    assert size == (20, 30)


def test_sixteen_bits_of_colour_are_seen_where_pillow_keeps_eight():
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes(20 * (1 + 30 * 6)))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    assert examine(data, "a.png") == (Trait.MORE_THAN_8_BITS, (20, 30))


def test_what_is_no_image_has_no_traits():
    assert examine(b"hello", "a.jpg") == (NO_TRAITS, (0, 0))
    assert examine(b"\xff\xd8\xff", "a.jpg") == (NO_TRAITS, (0, 0))


def test_a_name_without_suffix_is_not_wrong():
    assert has_suffix_of("PNG", "photo")
    assert has_suffix_of("JPEG", "photo.JFIF")
    assert not has_suffix_of("PNG", "photo.gif")
