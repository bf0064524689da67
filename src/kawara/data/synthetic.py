"""Images with exact truth, made from a seed: for tests and demonstrations, without any download.

One shape on a textured ground. The class is the shape; its place, size, turn and colour and the ground are random, so neither colour nor
a single pixel gives the class away. Each image depends on (seed, its class, its number) alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kawara.data.decode import ImageU8
from kawara.data.listing import ArrayPart, Listing

Plane = npt.NDArray[np.float64]

# Each takes coordinates (x, y) in units of the shape's radius and is negative inside.
_SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) - 0.85,
    "triangle": lambda x, y: np.maximum(abs(x) * 0.866 + y * 0.5, -y) - 0.55,
    "cross": lambda x, y: np.minimum(np.maximum(abs(x) - 1, abs(y) - 0.3), np.maximum(abs(y) - 1, abs(x) - 0.3)),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.75) - 0.2,
    "bar": lambda x, y: np.maximum(abs(x) - 1.1, abs(y) - 0.28),
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1, 0.8 - np.hypot(x - 0.5, y)),
    "dots": lambda x, y: np.hypot(abs(x) - 0.6, y) - 0.4,
}
SHAPE_NAMES = tuple(_SHAPES)


def shape_image(shape: str, number: int, *, size: int | tuple[int, int] = 32, seed: int = 0) -> ImageU8:
    """Return the `number`-th picture of `shape`, (H, W, 3) uint8; `size` is a side or (height, width)."""
    return _draw(shape, number, size, seed)[0]


def shape_mask(shape: str, number: int, *, size: int | tuple[int, int] = 32, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Return where the shape is in `shape_image` of the same arguments, (H, W): the pixels of which it covers more than half."""
    return _draw(shape, number, size, seed)[1] > 0.5


def _draw(shape: str, number: int, size: int | tuple[int, int], seed: int) -> tuple[ImageU8, Plane]:
    """Return the picture (H, W, 3) and how much of each pixel the shape covers (H, W)."""
    height, width = (size, size) if isinstance(size, int) else size
    random = np.random.default_rng([seed, SHAPE_NAMES.index(shape), number])
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    ground_color, shape_color = _two_colors(random)
    image = np.empty((height, width, 3))
    image[:] = ground_color
    side = min(height, width)
    for _ in range(2):  # waves of random direction and length
        angle, cycles, phase = random.uniform(0, 2 * np.pi), random.uniform(1, 5), random.uniform(0, 2 * np.pi)
        image += (random.uniform(5, 20) * np.sin(2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)) / side + phase))[..., None]
    radius = side * random.uniform(0.22, 0.36)
    center_x, center_y = random.uniform(radius, width - radius), random.uniform(radius, height - radius)
    turn = random.uniform(-0.35, 0.35)
    u = ((x - center_x) * np.cos(turn) + (y - center_y) * np.sin(turn)) / radius
    v = ((y - center_y) * np.cos(turn) - (x - center_x) * np.sin(turn)) / radius
    cover = np.clip(0.5 - _SHAPES[shape](u, v) * radius, 0, 1)  # one pixel wide soft edge
    image = image * (1 - cover[..., None]) + shape_color * cover[..., None] + random.normal(0, 6, (height, width, 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), cover


def shape_arrays(
    num_images: int, *, classes: Sequence[str] = SHAPE_NAMES, size: int = 32, seed: int = 0
) -> tuple[ImageU8, npt.NDArray[np.int64]]:
    """Return images (n, H, W, 3) uint8 and labels (n,), the classes in turn."""
    labels = np.arange(num_images, dtype=np.int64) % len(classes)
    images = [shape_image(classes[label], number // len(classes), size=size, seed=seed) for number, label in enumerate(labels.tolist())]
    return np.stack(images), labels


def list_shapes(num_images: int, *, classes: Sequence[str] = SHAPE_NAMES, size: int = 32, seed: int = 0) -> Listing:
    """Return a listing of such images that `load_data` takes like any data set."""
    images_u8, labels = shape_arrays(num_images, classes=classes, size=size, seed=seed)
    names = tuple(classes)
    return Listing("shapes", "synthetic shapes", names, names, arrays=[ArrayPart("shapes", None, images_u8, labels)])


def make_image_folder(
    path: str | Path,
    *,
    classes: Sequence[str] = SHAPE_NAMES[:3],
    per_class: int | Mapping[str, int] = 8,
    size: int | tuple[int, int] = 32,
    seed: int = 0,
    splits: Sequence[str] = (),
    format: str = "PNG",
) -> Path:
    """Write <path>[/<split>]/<class>/<number>.png (or .jpg) and return the path.

    `per_class` is the number of images of a class, in each split (or for each split by name). Images of different splits differ.
    """
    path = Path(path)
    number_before = 0
    for split in splits or ("",):
        count = per_class if isinstance(per_class, int) else per_class[split]
        for name in classes:
            folder = path / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                shape = name if name in _SHAPES else SHAPE_NAMES[classes.index(name) % len(SHAPE_NAMES)]
                image_u8 = shape_image(shape, number_before + number, size=size, seed=seed)
                suffix = "jpg" if format == "JPEG" else format.lower()
                (folder / f"{number:04d}.{suffix}").write_bytes(encode(image_u8, format))
        number_before += count
    return path


def encode(image_u8: ImageU8, format: str = "PNG", **options: Any) -> bytes:
    """Return (H, W, 3) or (H, W, 1) as the bytes of an image file."""
    target = io.BytesIO()
    Image.fromarray(image_u8[..., 0] if image_u8.shape[2] == 1 else image_u8).save(target, format, **options)
    return target.getvalue()


def _two_colors(random: np.random.Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return two colours that can be told apart, also in grey."""
    luma = np.array([0.299, 0.587, 0.114])
    while True:
        first, second = random.uniform(20, 235, 3), random.uniform(20, 235, 3)
        if abs(float((first - second) @ luma)) > 50:
            return first, second
