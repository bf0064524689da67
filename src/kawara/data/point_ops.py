"""Operations that change each value by itself: a table of 256 entries for each image (and channel), then one look-up.

The tables equal those of Pillow's ImageOps and ImageEnhance, entry for entry. Every builder takes uint8 images (n, C, h, w) and one
argument for each image (n,) float64, and returns uint8 tables (n, C, 256) or (n, 1, 256) on the images' device. Nothing here waits for
a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

TableBuilder = Callable[[Tensor, Tensor], Tensor]

_TRANSLATE_FROM = 4096
"""Pixels in a plane from which `bytes.translate` (one call a plane, 0.6 ns a byte) beats a batched gather (1 ns a byte)."""


def auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the full range."""
    low, high = (extreme.double()[..., None] for extreme in (images.amin((2, 3)), images.amax((2, 3))))
    scale = 255.0 / (high - low).clamp(min=1)
    table = (_ramp(images).double() * scale + -low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, table, _ramp(images).to(torch.uint8))


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Flatten each channel's histogram."""
    histogram = _histogram(images)
    before = histogram.cumsum(-1) - histogram
    last = histogram.gather(-1, images.amax((2, 3)).long()[..., None])
    step = (histogram.sum(-1, keepdim=True) - last) // 255
    table = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255).to(torch.uint8)
    return torch.where(step > 0, table, _ramp(images).to(torch.uint8))


def invert(images: Tensor, arguments: Tensor) -> Tensor:
    """Turn x into 255 − x."""
    return (255 - _ramp(images)).to(torch.uint8).expand(len(arguments), 1, 256)


def posterize(images: Tensor, num_bits: Tensor) -> Tensor:
    """Keep the highest bits of each value; with 0 bits the image is black."""
    mask = 256 - 2 ** (8 - num_bits.clamp(0, 8)).long()
    return (_ramp(images) & mask[:, None, None]).to(torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the values from the threshold upwards."""
    ramp = _ramp(images)
    return torch.where(ramp < thresholds[:, None, None], ramp, 255 - ramp).to(torch.uint8)


def solarize_add(images: Tensor, amounts: Tensor) -> Tensor:
    """Add to the values below 128."""
    ramp = _ramp(images)
    raised = (ramp + amounts[:, None, None].long()).clamp(max=255)
    return torch.where(ramp < 128, raised, ramp).to(torch.uint8)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply by the factor."""
    return (_ramp(images).float() * factors.float()[:, None, None]).clamp(0, 255).to(torch.uint8)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Move away from (or towards) the image's mean grey."""
    mean = torch.stack([luminance(image[None]).double().mean() for image in images]) if len(images) else factors
    mean = (mean + 0.5).floor().float()[:, None, None]
    return (mean + factors.float()[:, None, None] * (_ramp(images).float() - mean)).clamp(0, 255).to(torch.uint8)


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Return images (n, C, h, w) with every value replaced by its entry in `tables` (n, C or 1, 256)."""
    num_images, channels, height, width = images.shape
    if images.device.type == "cpu" and height * width >= _TRANSLATE_FROM:
        return _translate(images, tables)
    offsets = 256 * torch.arange(num_images * tables.shape[1], dtype=torch.int32, device=images.device)
    positions = images.int() + offsets.view(num_images, -1, 1, 1)
    return tables.contiguous().view(-1).index_select(0, positions.view(-1)).view(images.shape)


def luminance(images: Tensor) -> Tensor:
    """Return float32 (n, 1, h, w) holding the whole numbers of Pillow's conversion to "L"; grey images stay as they are.

    19595 R + 38470 G + 7471 B + 32768 stays below 2²⁴, so float32 holds every step exactly.
    """
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().unbind(1)
    grey = red.mul(19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768)
    return grey.mul_(2.0**-16).floor_().unsqueeze(1)


def _ramp(images: Tensor) -> Tensor:
    return torch.arange(256, device=images.device)


def _histogram(images: Tensor) -> Tensor:
    """(n, C, 256) counts."""
    planes = images.flatten(0, 1).flatten(1)
    if images.device.type == "cpu" and planes.shape[1] >= _TRANSLATE_FROM:
        counts = torch.stack([torch.bincount(plane, minlength=256) for plane in planes])
    else:
        positions = planes.int() + 256 * torch.arange(len(planes), dtype=torch.int32, device=images.device)[:, None]
        ones = torch.ones((), dtype=torch.int64, device=images.device).expand(positions.numel())
        counts = torch.zeros(256 * len(planes), dtype=torch.int64, device=images.device)
        counts.scatter_add_(0, positions.view(-1).long(), ones)  # bincount would wait for the GPU
    return counts.view(*images.shape[:2], 256)


def _translate(images: Tensor, tables: Tensor) -> Tensor:
    source, table_bytes = images.contiguous().numpy(), tables.numpy()
    result = np.empty(source.shape, dtype=np.uint8)
    for image, image_tables, target in zip(source, table_bytes, result):
        if len(image_tables) == 1:
            target.reshape(-1)[:] = np.frombuffer(image.tobytes().translate(image_tables[0].tobytes()), dtype=np.uint8)
            continue
        for plane, table, target_plane in zip(image, image_tables, target):
            target_plane.reshape(-1)[:] = np.frombuffer(plane.tobytes().translate(table.tobytes()), dtype=np.uint8)
    return torch.from_numpy(result)
