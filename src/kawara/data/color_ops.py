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
    num_images, channels, height, width = images.shape
    offsets = np.arange(-_MAX_BLUR_RADIUS_PX, _MAX_BLUR_RADIUS_PX + 1)
    weights = np.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    weights = np.repeat(weights / weights.sum(1, keepdims=True), channels, axis=0).astype(np.float32)
    kernels = torch.from_numpy(weights).to(images.device, non_blocking=True)
    planes = images.float().view(1, num_images * channels, height, width)
    planes = torch.nn.functional.pad(planes, (_MAX_BLUR_RADIUS_PX,) * 4, mode="replicate")
    planes = torch.nn.functional.conv2d(planes, kernels[:, None, :, None], groups=num_images * channels)
    planes = torch.nn.functional.conv2d(planes, kernels[:, None, None, :], groups=num_images * channels)
    return to_uint8(planes.view(images.shape).add_(0.5).clamp_(0, 255))
