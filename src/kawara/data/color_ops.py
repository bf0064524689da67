"""Operations that blend an image with another made from it: saturation, sharpness, grey, blur.

`result = degenerate + factor · (image − degenerate)`, cut to 0 … 255 and truncated, as Pillow's ImageEnhance does: within one level of it.
Images are uint8 (n, C, h, w), factors (n,).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kawara.data.grouping import column
from kawara.data.point_ops import luminance, to_uint8
from kawara.data.randomness import Floats

_MAX_BLUR_RADIUS_PX = 6


def saturation(images: Tensor, factors: Floats) -> Tensor:
    """Move away from (or towards) the image's own grey; grey images stay as they are."""
    if images.shape[1] == 1:
        return images
    values = images.float()
    grey_values = luminance(values)
    return to_uint8(values.sub_(grey_values).mul_(column(factors, images, np.float32)).add_(grey_values).clamp_(0, 255))


def grey(images: Tensor, _: Floats | None = None) -> Tensor:
    """Give every channel the luminance."""
    return to_uint8(luminance(images)).expand_as(images)


def sharpness(images: Tensor, factors: Floats) -> Tensor:
    """Move away from (or towards) a 3 × 3 smoothing with weights 1, centre 5; the outermost pixels stay as they are."""
    result = images.clone()
    if min(images.shape[-2:]) < 3:
        return result
    wide = images.to(torch.int16)
    center = wide[..., 1:-1, 1:-1]
    rows = (wide[..., :-2, :] + wide[..., 1:-1, :]).add_(wide[..., 2:, :])
    thirteen_smooth = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(center, alpha=4)
    blended = thirteen_smooth.float().mul_(column((1 - factors) / 13, images, np.float32))
    blended.add_(center.float().mul_(column(factors, images, np.float32)))
    result[..., 1:-1, 1:-1] = to_uint8(blended.clamp_(0, 255))
    return result


def gaussian_blur(images: Tensor, sigmas: Floats) -> Tensor:
    """Blur with a Gaussian of `sigmas` pixels (n,), at most 2; the border is repeated."""
    weights = np.exp(-0.5 * (np.arange(_MAX_BLUR_RADIUS_PX + 1) / sigmas[:, None]) ** 2)
    weights /= 2 * weights.sum(1, keepdims=True) - weights[:, :1]
    columns = [column(weights[:, distance], images, np.float32) for distance in range(_MAX_BLUR_RADIUS_PX + 1)]
    values = _blur_along(_blur_along(images.float(), 2, columns), 3, columns)
    return to_uint8(values.add_(0.5).clamp_(0, 255))


def _blur_along(values: Tensor, axis: int, weights: list[Tensor]) -> Tensor:
    """Sum each value's neighbours along `axis`. Not a convolution call: its last bits would depend on how many images come together."""
    radius, length = len(weights) - 1, values.shape[axis]
    positions = torch.arange(-radius, length + radius, device=values.device).clamp(0, length - 1)
    padded = values.index_select(axis, positions)
    total = padded.narrow(axis, radius, length) * weights[0]
    for distance, weight in enumerate(weights[1:], start=1):
        pair = padded.narrow(axis, radius - distance, length) + padded.narrow(axis, radius + distance, length)
        total.add_(pair.mul_(weight))
    return total
