"""Where an image is cut for training: random resized crop, pad and crop. Boxes are drawn here, pixels are moved here.

Axis letters: B batch, C channels, H W source pixels, h w pixels of the result, p padding.
"""

from __future__ import annotations

from math import exp, log, sqrt
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kawara.data.randomness import Indices, uniform, uniform_block

Border = Literal["zero", "mean", "reflect"]
Box = tuple[int, int, int, int]

_NUM_TRIES = 10


def random_resized_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], *, seed: int, epoch: int, index: int
) -> Box:
    """Draw (top, left, height, width) by torchvision's rule: area and aspect up to ten times, then the largest allowed centre.

    The area is uniform in `scale` times the image's, the aspect (width / height) log-uniform in `ratio`.
    """
    area, log_low, log_high = height * width, log(ratio[0]), log(ratio[1])
    for block in range(_NUM_TRIES):
        area_draw, ratio_draw, top_draw, left_draw = uniform_block(seed, epoch, index, "crop", block)
        wanted_area = area * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = exp(log_low + (log_high - log_low) * ratio_draw)
        box_width, box_height = round(sqrt(wanted_area * aspect)), round(sqrt(wanted_area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return int(top_draw * (height - box_height + 1)), int(left_draw * (width - box_width + 1)), box_height, box_width
    if width / height < ratio[0]:
        box_height, box_width = min(height, max(1, round(width / ratio[0]))), width
    elif width / height > ratio[1]:
        box_height, box_width = height, min(width, max(1, round(height * ratio[1])))
    else:
        box_height, box_width = height, width
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def pad_and_crop(images_u8: Tensor, padding: int, border: Border, fill: Tensor, *, seed: int, epoch: int, indices: Indices) -> Tensor:
    """Pad uint8 (B, C, h, w) by `padding` on every side and cut each image at an offset of its own.

    `fill` (C,) is the colour for the border "mean". Every offset is equally likely.
    """
    padded = _pad(images_u8, padding, border, fill)
    height, width = images_u8.shape[-2:]
    draws = uniform(seed, epoch, indices, "crop", 2)
    tops, lefts = (draws * (2 * padding + 1)).astype(np.int64).T
    if images_u8.device.type == "cpu":
        windows = np.lib.stride_tricks.sliding_window_view(padded.numpy(), (height, width), axis=(2, 3))  # pyright: ignore
        return torch.from_numpy(windows[np.arange(len(indices)), :, tops, lefts])
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    rows = torch.arange(len(indices), device=padded.device)
    return windows[rows, :, torch.from_numpy(tops).to(padded.device), torch.from_numpy(lefts).to(padded.device)]


def _pad(images_u8: Tensor, padding: int, border: Border, fill: Tensor) -> Tensor:
    batch, channels, height, width = images_u8.shape
    if border == "reflect" and padding < min(height, width):
        rows, columns = (_reflected(length, padding).to(images_u8.device) for length in (height, width))
        return images_u8.index_select(2, rows).index_select(3, columns)
    padded = images_u8.new_zeros((batch, channels, height + 2 * padding, width + 2 * padding))
    if border == "mean":
        padded += fill.to(images_u8.device)[:, None, None]
    padded[..., padding : padding + height, padding : padding + width] = images_u8
    return padded


def _reflected(length: int, padding: int) -> Tensor:
    positions = torch.arange(-padding, length + padding).abs()
    return torch.where(positions >= length, 2 * (length - 1) - positions, positions)
