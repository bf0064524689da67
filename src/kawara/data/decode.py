"""Decode image bytes to upright RGB or grey uint8, whatever the file is.

Upright: the EXIF (or XMP) orientation is applied. Colour: palettes are expanded, CMYK is converted, transparency is laid on white (what
a viewer shows; the hidden colour under a transparent pixel is often black or noise). Of an animation or a multi-page file the first
picture is taken. Colour profiles are not applied. Grey is the ITU-R 601 luma of the RGB picture, as in Pillow's mode "L".

Grey pictures with more than 8 bits are scaled by the range of their numbers: 16 bits by v >> 8; numbers that all fit 12 bits (cameras
and scanners keep 12 bits in 16-bit files) by v >> 4; numbers that all fit 8 bits stay. Floats: [0, 1] times 255, [0, 255] as they are,
[0, 65535] by v / 256, anything else from its lowest to its highest value.

Ordinary JPEGs go through simplejpeg where it is installed. Its pixels equal Pillow's bit for bit at the scales used here (1, 1/2, 1/4,
1/8; a test holds this), so results do not depend on whether it is there. It finds one fault more: image data that end early in a file
whose end marker is in place.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from kawara.errors import DecodeError

try:
    import simplejpeg
except ImportError:  # the extra `fast`
    simplejpeg = None

ImageU8 = npt.NDArray[np.uint8]
Color = Literal["rgb", "grey"]

# Part of every cache file's name: raise it when the pixels made from the same bytes change.
DECODER_VERSION = 1
MAX_PIXELS = 200_000_000
# No photo or drawing packs 2,000 pixels into a byte (a 1-bit page of text has about 500); 40 bytes of WebP can claim 200 megapixels.
_BOMB_PIXELS, _BOMB_PIXELS_PER_BYTE = 16_000_000, 2_000
_STRIP_PIXELS = 16_000_000
# No EPS or WMF (they start other programs) and no TGA (without a signature, noise passes for it).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "ICO", "QOI", "PCX", "SGI")
_ORIENTATION_TAG = 0x112
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def decode(data: bytes, name: str, *, color: Color = "rgb", min_side: int | None = None, max_pixels: int = MAX_PIXELS) -> ImageU8:
    """Return the picture in `data` upright as (H, W, 3) uint8, or (H, W, 1) for color="grey".

    With `min_side` a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its shorter side stays at least `min_side`.
    The same bytes, `color` and `min_side` always give the same pixels. Raises DecodeError naming `name` and the reason.
    """
    if not data:
        raise DecodeError(name, "the file is empty (0 bytes)", kind="empty")
    try:
        pixels = _decode_with_simplejpeg(data, name, color, min_side, max_pixels) if data[:2] == b"\xff\xd8" else None
        return _decode_with_pillow(data, name, color, min_side, max_pixels) if pixels is None else pixels
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise _not_an_image(name, data) from None
    except Image.DecompressionBombError:
        raise _too_many_pixels(name, max_pixels) from None
    except Exception as error:  # Pillow's readers raise OSError, ValueError, SyntaxError, struct.error and others on damaged files
        raise _damaged(name, error) from None


def to_color(image: Image.Image, color: Color = "rgb") -> ImageU8:
    """Return an opened image as `decode` would, (H, W, 3) or (H, W, 1) uint8; its orientation is left to the caller."""
    return _in_color(_to_u8(image), color)


def to_grey(image_u8: ImageU8) -> ImageU8:
    """Return the luma of (…, 3) as (…, 1), rounded as Pillow rounds it."""
    red, green, blue = (image_u8[..., i].astype(np.uint32) for i in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[..., None]


def _decode_with_simplejpeg(data: bytes, name: str, color: Color, min_side: int | None, max_pixels: int) -> ImageU8 | None:
    """Return None for what Pillow has to decide: unusual colours, a stream that simplejpeg does not like."""
    scan, has_metadata = _walk_jpeg(data)
    if scan < 0:
        return None
    if data.rfind(b"\xff\xd9", scan) < 0:
        if data.endswith(bytes(16)):
            raise DecodeError(name, "the JPEG is truncated: it ends in zero bytes", kind="truncated")
        return None
    if simplejpeg is None:
        return None
    try:
        header = simplejpeg.decode_jpeg_header(data)
        height, width, colorspace = int(header[0]), int(header[1]), header[2]
        if colorspace not in ("YCbCr", "Gray"):
            return None
        _check_size(name, data, (height, width), max_pixels)
        scale = _jpeg_scale(height, width, min_side)
        wanted = (-(-height // scale), -(-width // scale))
        grey = colorspace == "Gray"
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", min_height=wanted[0], min_width=wanted[1])
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise DecodeError(name, "the JPEG is truncated: its image data end early", kind="truncated") from None
        return None  # a smaller fault, for instance stray bytes between two markers
    if pixels.shape[:2] != wanted:
        return None
    orientation = orientation_of(Image.open(io.BytesIO(data), formats=("JPEG",))) if has_metadata else 1
    return _upright(_in_color(pixels, color), orientation)


def _decode_with_pillow(data: bytes, name: str, color: Color, min_side: int | None, max_pixels: int) -> ImageU8:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    _check_size(name, data, (height, width), max_pixels)
    orientation = orientation_of(image)
    if image.format in ("JPEG", "MPO"):
        scale = _jpeg_scale(height, width, min_side)
        if scale > 1:
            image.draft(image.mode, (width // scale, height // scale))
    image.load()
    if image.format == "TIFF":  # Pillow's reader may have turned the picture while loading; the tag is gone then
        orientation = orientation_of(image)
    return _upright(_in_color(_to_u8(image), color), orientation)


def _to_u8(image: Image.Image) -> ImageU8:
    """Return (H, W, 3), or (H, W, 1) for a picture without colour."""
    if image.mode in _WIDE_MODES:
        return _scaled_to_8_bits(np.asarray(image), image)[..., None]
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.has_transparency_data:
        return _on_white(image)
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"))[..., None]
    return np.array(image.convert("RGB"))


def _on_white(image: Image.Image) -> ImageU8:
    """Return (H, W, 3); a large picture goes in strips, of which each is held four times over."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = (image if rows >= height else image.crop((0, top, width, min(top + rows, height)))).convert("RGBA")
        opaque = Image.alpha_composite(Image.new("RGBA", strip.size, (255, 255, 255, 255)), strip)
        pixels[top : top + rows] = np.asarray(opaque.convert("RGB"))
    return pixels


def _scaled_to_8_bits(values: npt.NDArray[Any], image: Image.Image) -> ImageU8:
    if values.dtype.kind == "f":
        values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    lowest, highest = values.min(), values.max()
    if lowest < 0 or highest > 65535:
        span = max(float(highest) - float(lowest), 1e-300)
        return np.rint((values.astype(np.float64) - float(lowest)) * (255.0 / span)).astype(np.uint8)
    if values.dtype.kind == "f":
        factor = 255.0 if highest <= 1 else 1.0 if highest <= 255 else 1 / 256
        return np.floor(values * factor + (0.5 if factor >= 1 else 0.0)).astype(np.uint8)
    declared = getattr(image, "tag_v2", {}).get(258, (16,))[0] if image.format == "TIFF" else 16
    if image.format == "PPM":  # already stretched from the file's own range to 16 bits
        num_bits = 16
    elif 8 < declared < 16:
        num_bits = declared
    else:
        num_bits = 8 if highest < 256 else 12 if highest < 4096 else 16
    return (values >> (num_bits - 8)).astype(np.uint8)


def _in_color(pixels: ImageU8, color: Color) -> ImageU8:
    if color == "rgb":
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    return pixels if pixels.shape[2] == 1 else to_grey(pixels)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation 1–8; damaged metadata count as none."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: ImageU8, orientation: int) -> ImageU8:
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _jpeg_scale(height: int, width: int, min_side: int | None) -> int:
    shorter = min(height, width)
    return next((scale for scale in (8, 4, 2) if min_side is not None and shorter // scale >= max(min_side, 1)), 1)


def _walk_jpeg(data: bytes) -> tuple[int, bool]:
    """Return where the first scan starts (-1: not found) and whether there is an APP1 segment (EXIF, XMP) before it."""
    position, has_metadata = 2, False
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:
            return position, has_metadata
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        has_metadata = has_metadata or marker == 0xE1
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return -1, has_metadata


def _check_size(name: str, data: bytes, size: tuple[int, int], max_pixels: int) -> None:
    num_pixels = size[0] * size[1]
    if num_pixels > max_pixels:
        raise _too_many_pixels(name, max_pixels, size)
    if num_pixels > _BOMB_PIXELS and num_pixels > _BOMB_PIXELS_PER_BYTE * len(data):
        raise DecodeError(name, f"a decompression bomb: {size[1]} × {size[0]} pixels out of {len(data):,} bytes", kind="too-large")


def _too_many_pixels(name: str, max_pixels: int, size: tuple[int, int] | None = None) -> DecodeError:
    shown = f"{size[1]} × {size[0]} pixels" if size else "far more pixels"
    return DecodeError(
        name, f"{shown}, more than the limit of {max_pixels / 1e6:g} megapixels", kind="too-large", remedy="scale the image down first"
    )


def _not_an_image(name: str, data: bytes) -> DecodeError:
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return DecodeError(name, "not an image but an HTML page (a download that failed?)", kind="not-an-image")
    if start.startswith(b"version https://git-lfs"):
        return DecodeError(name, "not an image but a Git LFS pointer (run: git lfs pull)", kind="not-an-image")
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"hevc"):
        return DecodeError(name, "a HEIC image, which is not supported (convert it to JPEG)", kind="unsupported")
    if not data.strip(b"\0"):
        return DecodeError(name, "not an image: it holds nothing but zero bytes", kind="not-an-image")
    return DecodeError(name, "not an image, or a damaged one: no known format starts like this", kind="not-an-image")


def _damaged(name: str, error: Exception) -> DecodeError:
    text = str(error) or type(error).__name__
    if "truncated" in text.lower():
        return DecodeError(name, f"the image is truncated ({text.removeprefix('image file is truncated ').strip('()')})", kind="truncated")
    return DecodeError(name, f"the image is damaged or of an unsupported kind ({text})")
