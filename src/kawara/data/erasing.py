"""Random erasing (arXiv 1708.04896, timm's "pixel" mode) and Gaussian noise, both on normalised images.

Both read their N(0, 1) numbers from one fixed table, each image from a place of its own: as good as fresh numbers for this use, and
free. The table does not depend on the seed; the places do.
"""

from __future__ import annotations

from functools import lru_cache
from math import log

import numpy as np
import torch
from torch import Tensor

from kawara.data.randomness import Floats, Indices, normal, uniform

_AREA = (0.02, 1 / 3)
_LOG_ASPECT = (log(0.3), -log(0.3))
_NUM_TRIES = 10
_NUM_PLACES = 1 << 20


def random_erasing(images: Tensor, probability: float, numbers: Floats, *, seed: int, epoch: int, indices: Indices) -> Tensor:
    """Fill one rectangle with N(0, 1), in place, in each image whose number in (B, 1) is below the probability.

    `images` is float32 (B, C, h, w).
    """
    drawn = np.flatnonzero(numbers[:, 0] < probability)
    if len(drawn) == 0:
        return images
    boxes, offsets = erasing_boxes(*images.shape[-2:], seed=seed, epoch=epoch, indices=indices[drawn])
    if images.device.type != "cpu":
        return _erase_on_device(images, drawn, boxes, offsets)
    pixels, size = images.numpy(), images[0].numel()
    table = noise_table(size).numpy()
    for place, offset, (top, left, height, width) in zip(drawn.tolist(), offsets.tolist(), boxes.tolist()):
        box = (slice(None), slice(top, top + height), slice(left, left + width))
        pixels[place][box] = table[offset : offset + size].reshape(images.shape[1:])[box]
    return images


def erasing_boxes(height: int, width: int, *, seed: int, epoch: int, indices: Indices) -> tuple[Indices, Indices]:
    """Draw (n, 4) top, left, height, width and (n,) places in the noise table. A box of size 0: no try fitted."""
    draws = uniform(seed, epoch, indices, "erasing/box", 4 * _NUM_TRIES + 1)
    tries = draws[:, :-1].reshape(len(indices), _NUM_TRIES, 4)
    area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * tries[..., 0])
    aspect = np.exp(_LOG_ASPECT[0] + (_LOG_ASPECT[1] - _LOG_ASPECT[0]) * tries[..., 1])
    box_heights, box_widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (box_heights < height) & (box_widths < width)
    first = fits.argmax(1)
    rows = np.arange(len(indices))
    box_height, box_width = box_heights[rows, first], box_widths[rows, first]
    top = np.floor(tries[rows, first, 2] * (height - box_height + 1))
    left = np.floor(tries[rows, first, 3] * (width - box_width + 1))
    boxes = np.stack((top, left, box_height, box_width), axis=1) * fits.any(1, keepdims=True)
    return boxes.astype(np.int64), (draws[:, -1] * _NUM_PLACES).astype(np.int64)


def add_noise(images: Tensor, std: float, numbers: Floats) -> Tensor:
    """Add std · N(0, 1) to normalised images (B, C, h, w), in place; a number in (B, 1) says where an image reads the table."""
    offsets = (numbers[:, 0] * _NUM_PLACES).astype(np.int64)
    size = images[0].numel()
    table = noise_table(size)
    if images.device.type == "cpu":
        for image, offset in zip(images, offsets.tolist()):
            image.add_(table[offset : offset + size].view(image.shape), alpha=std)
        return images
    return images.add_(_noise_on_device(images, offsets), alpha=std)


def noise_table(image_size: int) -> Tensor:
    """Return float32 N(0, 1) numbers, enough to read `image_size` values from every place."""
    return _noise_table(_NUM_PLACES + (1 << max(12, (image_size - 1).bit_length())))


@lru_cache(maxsize=2)
def _noise_table(length: int) -> Tensor:
    rows = np.arange(-(-length // 1024), dtype=np.int64)
    return torch.from_numpy(normal(0, 0, rows, "noise table", 1024).astype(np.float32)).view(-1)


@lru_cache(maxsize=2)
def _device_table(image_size: int, device: torch.device) -> Tensor:
    return noise_table(image_size).to(device)


def _noise_on_device(images: Tensor, offsets: Indices) -> Tensor:
    size = images[0].numel()
    starts = torch.from_numpy(offsets).to(images.device, non_blocking=True)
    places = starts[:, None] + torch.arange(size, device=images.device)
    return _device_table(size, images.device)[places].view(-1, *images.shape[1:])


def _erase_on_device(images: Tensor, drawn: Indices, boxes: Indices, offsets: Indices) -> Tensor:
    places = torch.from_numpy(drawn).to(images.device, non_blocking=True)
    top, left, height, width = torch.from_numpy(boxes).to(images.device, non_blocking=True).T[..., None]
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    in_rows, in_columns = (rows >= top) & (rows < top + height), (columns >= left) & (columns < left + width)
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
    chosen = images.index_select(0, places)
    return images.index_copy_(0, places, torch.where(inside, _noise_on_device(chosen, offsets), chosen))
