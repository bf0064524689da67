"""Every kind of file comes out upright, in the wanted colour, with the right values, or is named in an error."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from kawara.data import decode as module
from kawara.data.decode import decode, to_color
from kawara.data.synthetic import encode, shape_image
from kawara.errors import DecodeError

PHOTO = shape_image("triangle", 0, size=(96, 144), seed=3)


@pytest.fixture(params=["simplejpeg", "Pillow alone"])
def decoder(request, monkeypatch):
    """Both ways to decode a JPEG."""
    if request.param == "Pillow alone":
        monkeypatch.setattr(module, "simplejpeg", None)
    elif module.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    return request.param


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def saved(image: Image.Image, format: str, **options) -> bytes:
    target = io.BytesIO()
    image.save(target, format, **options)
    return target.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(decoder, format, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(Image.fromarray(PHOTO), format, exif=exif, **options)
    height, width = (144, 96) if orientation >= 5 else (96, 144)
    image = decode(data, "photo")
    assert image.shape == (height, width, 3)
    np.testing.assert_array_equal(image, pillow(data))


def test_the_eight_orientations_against_their_definition():
    """The EXIF standard: where row 0 and column 0 of the stored picture are seen."""
    stored = PHOTO[:, :, :]
    seen = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }
    for orientation, expected in seen.items():
        exif = Image.Exif()
        exif[0x112] = orientation
        np.testing.assert_array_equal(decode(saved(Image.fromarray(stored), "PNG", exif=exif), "x"), expected, err_msg=str(orientation))


@pytest.mark.parametrize("size", [(333, 517), (100, 75), (17, 19), (64, 65), (31, 250)])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_simplejpeg_and_pillow_give_the_same_pixels_at_every_scale(monkeypatch, size, subsampling, progressive):
    data = encode(shape_image("cross", 1, size=size), "JPEG", subsampling=subsampling, progressive=progressive, quality=85)
    for min_side in (None, 1, min(size) // 5, min(size) // 3, min(size) // 2, min(size)):
        monkeypatch.undo()
        fast = decode(data, "x", min_side=min_side)
        monkeypatch.setattr(module, "simplejpeg", None)
        np.testing.assert_array_equal(fast, decode(data, "x", min_side=min_side), err_msg=str(min_side))
        assert min(fast.shape[:2]) >= min(min_side or size[0], *size)


@pytest.mark.parametrize(("min_side", "scale"), [(None, 1), (96, 1), (49, 1), (48, 2), (25, 2), (24, 4), (13, 4), (12, 8), (1, 8)])
def test_scaled_decoding_keeps_the_shorter_side(decoder, min_side, scale):
    image = decode(encode(PHOTO, "JPEG"), "x", min_side=min_side)
    assert image.shape[:2] == (96 // scale, 144 // scale)


def test_full_size_jpeg_equals_pillow(decoder):
    data = encode(PHOTO, "JPEG")
    np.testing.assert_array_equal(decode(data, "x"), pillow(data))
    np.testing.assert_array_equal(decode(data, "x", color="grey")[..., 0], np.asarray(Image.fromarray(pillow(data)).convert("L")))


@pytest.mark.parametrize(
    ("mode", "format"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("L", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("P", "PNG")]
)
def test_modes_without_transparency_equal_pillow(decoder, mode, format):
    data = saved(Image.fromarray(PHOTO).convert(mode), format)
    image = decode(data, "x")
    np.testing.assert_array_equal(image, pillow(data))
    grey = decode(data, "x", color="grey")
    assert grey.shape == (96, 144, 1)
    np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(image).convert("L")))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(format):
    alpha = np.zeros((96, 144, 1), np.uint8)
    alpha[:, 50:] = 255
    alpha[:, 70:90] = 128
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    image = decode(saved(Image.fromarray(np.concatenate([PHOTO, alpha], axis=2)), format, **options), "x")
    assert (image[:, :50] == 255).all()
    np.testing.assert_array_equal(image[:, 90:], PHOTO[:, 90:])
    half = PHOTO[:, 70:90] * (128 / 255) + 255 * (127 / 255)
    assert abs(image[:, 70:90] - half).max() <= 1


def test_grey_with_alpha_and_palette_with_a_transparent_entry():
    grey_alpha = Image.merge("LA", (Image.new("L", (8, 8), 40), Image.new("L", (8, 8), 0)))
    assert (decode(saved(grey_alpha, "PNG"), "x", color="grey") == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((0, 0), 0)
    image = decode(saved(palette, "GIF", transparency=0), "x")
    assert image[0, 0].tolist() == [255, 255, 255]
    assert image[1, 1].tolist() == [200, 100, 50]


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bits_become_8_by_their_range(format):
    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(values), format), "x", color="grey")[..., 0], values >> 8)


@pytest.mark.parametrize(("highest", "shift"), [(200, 0), (4095, 4), (4096, 8)])
def test_fewer_bits_in_a_16_bit_file(highest, shift):
    values = np.linspace(0, highest, 64 * 48).reshape(48, 64).astype(np.uint16)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(values), "PNG"), "x", color="grey")[..., 0], values >> shift)


def test_pgm_with_12_bits_uses_its_own_range():
    values = np.linspace(0, 4095, 16).astype(">u2")
    image = decode(b"P5 4 4 4095\n" + values.tobytes(), "x", color="grey")
    assert image.reshape(-1)[[0, -1]].tolist() == [0, 255]
    assert abs(image.reshape(-1) - np.linspace(0, 255, 16)).max() <= 1


@pytest.mark.parametrize(("lowest", "highest"), [(0, 1), (0, 255), (0, 65535), (-3, 3)])
def test_float_tiff(lowest, highest):
    values = np.linspace(lowest, highest, 64).reshape(8, 8).astype(np.float32)
    image = decode(saved(Image.fromarray(values), "TIFF"), "x", color="grey")[..., 0]
    assert abs(image - np.linspace(0, 255, 64).reshape(8, 8)).max() <= 1


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_taken(format):
    frames = [Image.new("RGB", (16, 12), color) for color in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    image = decode(saved(frames[0], format, save_all=True, append_images=frames[1:], **options), "x")
    assert image.shape == (12, 16, 3)
    assert (image == [255, 0, 0]).all()


@pytest.mark.parametrize("format", ["BMP", "PPM", "ICO", "JPEG2000", "PCX", "SGI"])
def test_other_formats(format):
    square = shape_image("circle", 0, size=64)
    assert abs(decode(encode(square, format), "x").astype(int) - square).max() <= 1


def test_the_suffix_plays_no_role():
    np.testing.assert_array_equal(decode(encode(PHOTO, "PNG"), "photo.jpg"), PHOTO)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
@pytest.mark.parametrize(
    ("format", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("TIFF", {}), ("BMP", {})]
)
def test_a_truncated_file_is_named(decoder, format, options, share):
    data = encode(PHOTO, format, **options)
    with pytest.raises(DecodeError, match=r"folder/photo\.x: "):
        decode(data[: int(len(data) * share)], "folder/photo.x")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_ends_in_zero_bytes_is_truncated(decoder, progressive):
    data = encode(PHOTO, "JPEG", progressive=progressive)
    cut = int(len(data) * 0.7)
    with pytest.raises(DecodeError, match="truncated"):
        decode(data[:cut] + bytes(len(data) - cut), "x")


def test_image_data_that_end_early_are_found_by_simplejpeg():
    if module.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    data = encode(PHOTO, "JPEG")
    with pytest.raises(DecodeError, match="truncated"):
        decode(data[: len(data) // 2] + b"\xff\xd9", "x")


def test_what_follows_a_complete_jpeg_is_passed_over(decoder):
    data = encode(PHOTO, "JPEG")
    np.testing.assert_array_equal(decode(data + b"a camera's trailer" * 9, "x"), pillow(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (bytes(100), "zero bytes"),
        (b"hello, world" * 20, "not an image"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
        (b"\xff\xd8", "image"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "image"),
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_what_is_no_image_says_what_it_is(data, reason):
    with pytest.raises(DecodeError, match=reason) as caught:
        decode(data, "some/file.jpg")
    assert caught.value.path == "some/file.jpg"
    assert "some/file.jpg" in str(caught.value)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(decoder):
    row = struct.pack(">II", 60_000, 60_000)
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + row + b"\x08\x02\0\0\0"
    import zlib

    header += struct.pack(">I", zlib.crc32(header[12:]))
    with pytest.raises(DecodeError, match="more than the limit of 200 megapixels"):
        decode(header + b"\0\0\0\0IDAT" + bytes(8), "bomb.png")
    for format in ("JPEG", "PNG"):
        with pytest.raises(DecodeError, match="144 × 96 pixels, more than the limit"):
            decode(encode(PHOTO, format), "large", max_pixels=1000)


def test_to_color_takes_opened_images():
    image = Image.fromarray(PHOTO)
    np.testing.assert_array_equal(to_color(image), PHOTO)
    assert to_color(image.convert("P"), "grey").shape == (96, 144, 1)


def test_results_are_writable_and_contiguous(decoder):
    for format in ("JPEG", "PNG"):
        image = decode(encode(PHOTO, format), "x")
        assert image.flags.writeable
        assert image.flags.c_contiguous
