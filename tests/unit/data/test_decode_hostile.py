"""Damaged and hostile bytes give pixels or a DecodeError: no other error, no crash, no hang, no gigabytes.

The files are decoded in a process of their own, which a crash would end and whose memory can be measured.
"""

from __future__ import annotations

import faulthandler
import io
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MAX_SECONDS = 5.0
MAX_BYTES = 1_000_000_000
_LARGE = (0, 1, 255, 256, 4095, 13_999, 14_200, 16_384, 32_767, 65_535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)


def test_hundreds_of_damaged_files():
    check(decode_in_its_own_process(count=600, seed=1))


@pytest.mark.slow
def test_ten_thousand_damaged_files(record_property):
    found = decode_in_its_own_process(count=10_000, seed=2)
    for name in ("pixels", "refused", "peak_bytes"):
        record_property(name, found[name])
    record_property("slowest_s", found["slowest"][0])
    check(found)


def check(found: dict) -> None:
    assert found["unexpected"] == []
    assert found["slowest"][0] < MAX_SECONDS, found["slowest"]
    assert found["peak_bytes"] < MAX_BYTES, found["largest"]
    assert found["refused"] > found["pixels"] > count_of(found) / 20, "the files are neither all good nor all bad"


def count_of(found: dict) -> int:
    return found["pixels"] + found["refused"]


def decode_in_its_own_process(count: int, seed: int) -> dict:
    run = subprocess.run([sys.executable, __file__, str(count), str(seed)], capture_output=True, text=True, timeout=3000, check=False)
    assert run.returncode == 0, f"exit code {run.returncode}: {run.stderr[-3000:]}"
    return json.loads(run.stdout.splitlines()[-1])


def valid_files() -> list[tuple[str, bytes]]:
    """A small picture in every format and in the unusual forms of it."""
    rng = np.random.default_rng(0)
    rows = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    rgb = Image.fromarray(rows)
    alpha, grey, palette = rgb.copy(), rgb.convert("L"), rgb.quantize(32)
    alpha.putalpha(grey)
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    second = rgb.transpose(Image.Transpose.ROTATE_180)
    exif = Image.Exif()
    exif[0x112] = 6
    forms = [
        ("JPEG", rgb, {}),
        ("JPEG", rgb, {"exif": exif}),
        ("JPEG", rgb, {"progressive": True, "quality": 40}),
        ("JPEG", grey, {}),
        ("JPEG", rgb.convert("CMYK"), {}),
        ("MPO", rgb, {"save_all": True, "append_images": [second]}),
        ("PNG", rgb, {}),
        ("PNG", alpha, {}),
        ("PNG", palette, {"transparency": 3}),
        ("PNG", wide, {}),
        ("PNG", rgb.convert("1"), {}),
        ("PNG", rgb, {"save_all": True, "append_images": [second]}),
        ("GIF", palette, {}),
        ("GIF", palette, {"save_all": True, "append_images": [second.quantize(16)], "transparency": 0, "disposal": 2}),
        ("WEBP", rgb, {"quality": 60}),
        ("WEBP", alpha, {"lossless": True}),
        ("WEBP", rgb, {"save_all": True, "append_images": [second]}),
        ("TIFF", rgb, {}),
        ("TIFF", wide, {}),
        ("TIFF", rgb, {"compression": "tiff_lzw"}),
        ("TIFF", rgb, {"save_all": True, "append_images": [second.copy()]}),
        ("TIFF", rgb.convert("1"), {"compression": "group4"}),
        ("TIFF", rgb, {"compression": "jpeg"}),
        ("BMP", rgb, {}),
        ("BMP", palette, {}),
        ("PPM", rgb, {}),
        ("PPM", wide, {}),
        ("ICO", alpha, {"sizes": [(32, 32)]}),
        ("PCX", palette, {}),
        ("SGI", rgb, {}),
        ("JPEG2000", rgb, {}),
        ("AVIF", rgb, {}),
        ("QOI", rgb, {}),
    ]
    files = []
    for name, image, options in forms:
        buffer = io.BytesIO()
        try:
            image.copy().save(buffer, name, **options)  # a picture remembers how it was saved last
        except (KeyError, OSError):  # a format that this Pillow cannot write
            continue
        files.append((name, buffer.getvalue()))
    return files


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four damages: other bytes (mostly near the start), other numbers, an end too early, pieces moved, doubled or lost."""
    content = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        near_start = min(len(content), 64) if rng.random() < 0.6 else len(content)
        at = int(rng.integers(0, max(1, near_start)))
        kind = rng.integers(0, 7)
        if kind <= 1:
            content[at : at + 1] = bytes([int(rng.integers(0, 256))])
        elif kind == 2:
            width, order = int(rng.choice([2, 4])), "big" if rng.random() < 0.5 else "little"
            number = int(rng.choice(_LARGE)) % (1 << 8 * width)
            content[at : at + width] = number.to_bytes(width, order)
        elif kind == 3:
            content[at : at + 1] = bytes([content[at] ^ (1 << int(rng.integers(0, 8)))]) if content else b""
        elif kind == 4:
            del content[max(1, int(len(content) * rng.random())) :]
        elif kind == 5:
            length = int(rng.integers(1, 64))
            content[at:at] = content[int(rng.integers(0, max(1, len(content)))) :][:length]
        else:
            del content[at : at + int(rng.integers(1, 16))]
        if not content:
            break
    return bytes(content)


def main(count: int, seed: int) -> None:
    """Decode `count` damaged files and print what happened as JSON."""
    import warnings

    from kawara.data.decode import decode
    from kawara.data.traits import examine
    from kawara.errors import DecodeError

    warnings.simplefilter("ignore")
    faulthandler.enable()
    rng = np.random.default_rng(seed)
    files = valid_files()
    for name, data in files:
        decode(data, name)
    found = {"pixels": 0, "refused": 0, "unexpected": [], "slowest": (0.0, ""), "largest": (0, "")}
    for number in range(count):
        name, data = files[number % len(files)]
        hostile = damaged(data, rng)
        what = f"{number} {name}"
        faulthandler.dump_traceback_later(60, exit=True)
        peak, started = _peak_bytes(), time.process_time()
        try:
            image_u8 = decode(hostile, "hostile", min_side=128 if number % 2 else None)
            is_picture = image_u8.dtype == np.uint8 and image_u8.ndim == 3 and image_u8.shape[2] == 3 and image_u8.size > 0
            found["pixels" if is_picture else "unexpected"] += 1 if is_picture else [what]
        except DecodeError:
            found["refused"] += 1
        except Exception as error:
            found["unexpected"].append(f"{what}: {error!r}")
        try:
            examine(hostile, "hostile.jpg")
        except Exception as error:
            found["unexpected"].append(f"{what}, examined: {error!r}")
        found["slowest"] = max(found["slowest"], (time.process_time() - started, what))
        found["largest"] = max(found["largest"], (_peak_bytes() - peak, what))
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(found | {"peak_bytes": _peak_bytes()}))


def _peak_bytes() -> int:
    if sys.platform == "linux":  # ru_maxrss would hold the memory of the process that this one was forked from
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
