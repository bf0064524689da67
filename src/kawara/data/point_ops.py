"""Operations that change each value by itself, equal to Pillow's ImageOps and ImageEnhance bit for bit.

Each takes uint8 images (n, C, h, w) and one argument for each image (n,), and returns new images. Those that a few byte-wide
vector instructions can say are arithmetic; the others build a table of 256 entries for each channel and look it up. Nothing here waits
for a GPU.

On a CPU torch compares bytes quickly only where the result is bytes too (`ge_`), and turns floats to bytes slowly: see `to_uint8`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kawara.data.grouping import column
from kawara.data.randomness import Floats

_LARGE_PLANE = 4096
"""Pixels in a plane from which one call a plane beats one batched call on a CPU: 0.6 ns a byte for `bytes.translate`, 1 ns for a gather."""


def auto_contrast(images: Tensor, _: Floats | None = None) -> Tensor:
    """Stretch each channel to the full range."""
    low, high = (_small(extreme.double())[..., None] for extreme in (images.amin((2, 3)), images.amax((2, 3))))
    scale, flat, ramp = 255.0 / (high - low).clip(1), high == low, _ramp(images)
    return look_up(images, (ramp * scale + -low * scale).clip(0, 255) * ~flat + ramp * flat)


def equalize(images: Tensor, _: Floats | None = None) -> Tensor:
    """Flatten each channel's histogram."""
    histogram = _small(_histogram(images))
    below = histogram.cumsum(-1) - histogram
    occupied = below * (histogram > 0)
    most = occupied.max(-1) if isinstance(occupied, np.ndarray) else occupied.amax(-1)  # all but the count of the highest value
    step = most[..., None] // 255
    return look_up(images, ((step // 2 + below) // step.clip(1)).clip(0, 255) * (step > 0) + _ramp(images) * (step == 0))


def invert(images: Tensor, _: Floats | None = None) -> Tensor:
    """Turn x into 255 − x."""
    return images.bitwise_not()


def posterize(images: Tensor, num_bits: Floats) -> Tensor:
    """Keep the highest bits of each value; with 0 bits the image is black."""
    return images & column(256 - 2 ** (8 - num_bits), images, np.uint8)


def solarize(images: Tensor, thresholds: Floats) -> Tensor:
    """Invert the values from the threshold upwards; a threshold of 256 changes nothing."""
    flipped = column(np.where(thresholds < 256, 255, 0), images, np.uint8)
    return images.clone().ge_(column(np.minimum(thresholds, 255), images, np.uint8)).mul_(flipped).bitwise_xor_(images)


def solarize_add(images: Tensor, amounts: Floats) -> Tensor:
    """Add up to 128 to the values below 128."""
    return images.clone().lt_(128).mul_(column(amounts, images, np.uint8)).add_(images)


def brightness(images: Tensor, factors: Floats) -> Tensor:
    """Multiply by the factor."""
    return to_uint8(images.float().mul_(column(factors, images, np.float32)).clamp_(0, 255))


def contrast(images: Tensor, factors: Floats) -> Tensor:
    """Move away from (or towards) the image's mean grey."""
    values = images.float()
    total = luminance(values).sum(-1).sum((1, 2), dtype=torch.float64)  # a row's sum is exact in float32, and quick
    mean = (total / (images.shape[2] * images.shape[3]) + 0.5).floor().float().view(-1, 1, 1, 1)
    return to_uint8(values.sub_(mean).mul_(column(factors, images, np.float32)).add_(mean).clamp_(0, 255))


def look_up(images: Tensor, tables: Tensor | npt.NDArray[np.number]) -> Tensor:
    """Return images (n, C, h, w) with every value replaced by its entry in `tables` (n, C, 256), truncated."""
    tables = torch.as_tensor(tables).to(torch.uint8)
    num_planes, num_pixels = images.shape[0] * images.shape[1], images.shape[2] * images.shape[3]
    if images.device.type == "cpu" and num_pixels >= _LARGE_PLANE:
        result = np.empty((num_planes, num_pixels), dtype=np.uint8)
        source, entries = images.reshape(num_planes, num_pixels).numpy(), tables.view(num_planes, 256).numpy()
        for plane in range(num_planes):
            result[plane] = np.frombuffer(source[plane].tobytes().translate(entries[plane].tobytes()), dtype=np.uint8)
        return torch.from_numpy(result).view(images.shape)
    positions = images.int() + _plane_offsets(images)
    return tables.view(-1).index_select(0, positions.view(-1)).view(images.shape)


def luminance(images: Tensor) -> Tensor:
    """Return float32 (n, 1, h, w) holding the whole numbers of Pillow's conversion to "L"; grey images stay as they are.

    The images may be uint8 or float32.
    19595 R + 38470 G + 7471 B + 32768 stays below 2²⁴, so float32 holds every step exactly.
    """
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().unbind(1)  # no copy where they are float32 already
    grey = red.mul(19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768)
    return grey.mul_(2.0**-16).floor_().unsqueeze(1)


def to_uint8(values: Tensor) -> Tensor:
    """Truncate float values that lie in 0 … 255. On a CPU numpy does this five times as fast as torch."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().astype(np.uint8))
    return values.to(torch.uint8)


def _small(values: Tensor) -> Any:
    """Return a numpy array on a CPU, where the arithmetic of a table costs a quarter of torch's; the two speak the same operators."""
    return values.numpy() if values.device.type == "cpu" else values


def _ramp(images: Tensor) -> Any:
    return _small(torch.arange(256, device=images.device))


def _plane_offsets(images: Tensor) -> Tensor:
    """(n, C, 1, 1): where each plane's 256 entries begin."""
    starts = torch.arange(0, 256 * images.shape[0] * images.shape[1], 256, dtype=torch.int32, device=images.device)
    return starts.view(*images.shape[:2], 1, 1)


def _histogram(images: Tensor) -> Tensor:
    """(n, C, 256) counts."""
    num_planes = images.shape[0] * images.shape[1]
    if images.device.type != "cpu":  # bincount would wait for the GPU
        positions = (images.int() + _plane_offsets(images)).view(-1).long()
        counts = torch.zeros(256 * num_planes, dtype=torch.int64, device=images.device)
        counts.scatter_add_(0, positions, torch.ones((), dtype=torch.int64, device=images.device).expand(len(positions)))
    elif images.shape[2] * images.shape[3] >= _LARGE_PLANE:
        counts = torch.stack([torch.bincount(plane, minlength=256) for plane in images.reshape(num_planes, -1)])
    else:
        counts = torch.bincount((images.int() + _plane_offsets(images)).view(-1), minlength=256 * num_planes)
    return counts.view(*images.shape[:2], 256)
