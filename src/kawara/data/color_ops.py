"""Operations that blend an image with another made from it: saturation, sharpness, grey, blur.

`result = degenerate + factor · (image − degenerate)`, cut to 0 … 255 and truncated, as Pillow's ImageEnhance does: within one level of it.
Images are uint8 (n, C, h, w), factors (n,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kawara.data.point_ops import luminance, to_uint8

_MAX_BLUR_RADIUS_PX = 6


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Move away from (or towards) the image's own grey; grey images stay as they are."""
    if images.shape[1] == 1:
        return images
    grey_values, factors = luminance(images), factors.float().view(-1, 1, 1, 1)
    return to_uint8(images.float().sub_(grey_values).mul_(factors).add_(grey_values).clamp_(0, 255))


def grey(images: Tensor, _: Tensor | None = None) -> Tensor:
    """Give every channel the luminance."""
    return to_uint8(luminance(images)).expand_as(images)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Move away from (or towards) a 3 × 3 smoothing with weights 1, centre 5; the outermost pixels stay as they are."""
    result = images.clone()
    if min(images.shape[-2:]) < 3:
        return result
    wide = images.to(torch.int16)
    center = wide[..., 1:-1, 1:-1]
    rows = (wide[..., :-2, :] + wide[..., 1:-1, :]).add_(wide[..., 2:, :])
    thirteen_smooth = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(center, alpha=4)
    factors = factors.float().view(-1, 1, 1, 1)
    blended = thirteen_smooth.float().mul_((1 - factors) / 13).addcmul_(center.float(), factors)
    result[..., 1:-1, 1:-1] = to_uint8(blended.clamp_(0, 255))
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
