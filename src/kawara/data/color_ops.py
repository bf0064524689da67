"""Operations that blend an image with another made from it: saturation, sharpness, grey, blur.

`result = degenerate + factor · (image − degenerate)`, cut to 0 … 255 and truncated, as Pillow's ImageEnhance does: within one level of it.
Images are uint8 (n, C, h, w), factors (n,).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kawara.data.point_ops import luminance

_MAX_BLUR_RADIUS_PX = 6


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Move away from (or towards) the image's own grey; grey images stay as they are."""
    if images.shape[1] == 1:
        return images
    return _blend(luminance(images), images.float(), factors)


def grey(images: Tensor, _: Tensor) -> Tensor:
    """Give every channel the luminance."""
    return to_uint8(luminance(images)).expand_as(images)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Move away from (or towards) a 3 × 3 smoothing with weights 1, centre 5; the outermost pixels stay as they are."""
    result = images.clone()
    if min(images.shape[-2:]) < 3:
        return result
    wide = images.to(torch.int16)
    center = wide[..., 1:-1, 1:-1]
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    total = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]).add_(center, alpha=4)
    smooth = total.float().add_(6.5).mul_(1 / 13).floor_()
    result[..., 1:-1, 1:-1] = _blend(smooth, center.float(), factors)
    return result


def gaussian_blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Blur with a Gaussian of `sigmas` pixels (n,), at most 2; the border is repeated."""
    num_images, channels, height, width = images.shape
    offsets = torch.arange(-_MAX_BLUR_RADIUS_PX, _MAX_BLUR_RADIUS_PX + 1, device=images.device, dtype=torch.float32)
    kernels = torch.exp(-0.5 * (offsets / sigmas.float()[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    planes = images.float().view(1, num_images * channels, height, width)
    planes = torch.nn.functional.pad(planes, (_MAX_BLUR_RADIUS_PX,) * 4, mode="replicate")
    planes = torch.nn.functional.conv2d(planes, kernels[:, None, :, None], groups=num_images * channels)
    planes = torch.nn.functional.conv2d(planes, kernels[:, None, None, :], groups=num_images * channels)
    return to_uint8(planes.view(images.shape).add_(0.5).clamp_(0, 255))


def to_uint8(values: Tensor) -> Tensor:
    """Truncate float values that lie in 0 … 255. On a CPU numpy does this five times as fast as torch."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().astype(np.uint8))
    return values.to(torch.uint8)


def _blend(degenerate: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """`images` (float32, changed) is brought back to uint8."""
    images.sub_(degenerate)
    images.mul_(factors.float().view(-1, 1, 1, 1)) if len(factors) > 1 else images.mul_(factors.float())
    return to_uint8(images.add_(degenerate).clamp_(0, 255))
