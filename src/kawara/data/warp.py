"""Geometry of uint8 images: rotation, shear, translation, each image with an amount of its own.

Pillow's conventions: an output pixel (x, y) looks up the source at an affine function of (x + ½, y + ½); a look-up outside the source
gives the fill colour, and taps beyond the edge repeat it. Rotation turns counter-clockwise about the centre, shear keeps the top left
corner. The cubic kernel is torch's (a = −0.75; Pillow's transform has a = −1), so that every path here gives the same numbers.

Shear and translation move whole rows (or columns), so they need one-dimensional taps only: a fifth of the time of the general warp.

Axis letters: n images, C channels, h w pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kawara.data.color_ops import to_uint8
from kawara.data.crops import Border
from kawara.data.preprocessing import Interpolation

_CUBIC = -0.75
_PADDING_MODES = {"zero": "border", "mean": "border", "reflect": "reflection"}


def rotate(images: Tensor, degrees: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Turn uint8 (n, C, h, w) counter-clockwise by `degrees` (n,) about the centre; `fill` is uint8 (C,)."""
    return rotate_and_shift(images, degrees, torch.zeros_like(degrees), torch.zeros_like(degrees), fill, interpolation)


def shear_x(images: Tensor, factors: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Look up row y at x + factor · y."""
    rows = torch.arange(images.shape[2], device=images.device) + 0.5
    return _shift_rows(images, factors[:, None] * rows, fill, interpolation)


def shear_y(images: Tensor, factors: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Look up column x at y + factor · x."""
    return shear_x(images.transpose(2, 3).contiguous(), factors, fill, interpolation).transpose(2, 3)


def translate_x(images: Tensor, fractions: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Look up at x + fraction · width."""
    shifts = (fractions * images.shape[3])[:, None].expand(-1, images.shape[2])
    return _shift_rows(images, shifts, fill, interpolation)


def translate_y(images: Tensor, fractions: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Look up at y + fraction · height."""
    return translate_x(images.transpose(2, 3).contiguous(), fractions, fill, interpolation).transpose(2, 3)


def rotate_and_shift(
    images: Tensor,
    degrees: Tensor,
    shifts_x: Tensor,
    shifts_y: Tensor,
    fill: Tensor,
    interpolation: Interpolation,
    border: Border = "mean",
) -> Tensor:
    """Rotate about the centre, looking up `shifts` pixels further; outside is `fill`, or the mirrored image for the border "reflect"."""
    height, width = images.shape[-2:]
    angle = -torch.deg2rad(degrees)
    cosine, sine = angle.cos().float()[:, None, None], angle.sin().float()[:, None, None]
    across = torch.arange(width, device=images.device, dtype=torch.float32) + (0.5 - width / 2)
    down = (torch.arange(height, device=images.device, dtype=torch.float32) + (0.5 - height / 2))[:, None]
    source_x = cosine * across + sine * down + shifts_x.float()[:, None, None]  # 0 is the centre
    source_y = cosine * down - sine * across + shifts_y.float()[:, None, None]
    grid = torch.stack((source_x * (2 / width), source_y * (2 / height)), dim=-1)
    values = torch.nn.functional.grid_sample(
        images.float(), grid, mode=interpolation, padding_mode=_PADDING_MODES[border], align_corners=False
    )
    result = to_uint8(values.add_(0.5).clamp_(0, 255))
    if border == "reflect":
        return result
    inside = (grid.abs() < 1).all(-1)  # half-open in Pillow; a look-up exactly on the far edge is a matter of rounding
    return _fill_outside(result, inside, fill)


def _shift_rows(images: Tensor, shifts: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Look up row y of image i at x + shifts[i, y]; `shifts` is (n, h)."""
    width = images.shape[3]
    whole = shifts.floor()
    fraction = (shifts - whole).float()[:, None, :, None]
    taps = _tap_weights(fraction, interpolation)
    reach = len(taps) // 2 - 1  # taps to the left of the first whole position
    windows = _row_windows(images, whole.long().clamp(-width - 2, width + 2) - reach, width + len(taps) - 1).float()
    values = windows[..., :width] * taps[0]
    for position, weight in enumerate(taps[1:], start=1):
        values.addcmul_(windows[..., position : position + width], weight)
    result = to_uint8(values.add_(0.5).clamp_(0, 255))
    source = torch.arange(width, device=images.device) + 0.5 + shifts[:, :, None]
    return _fill_outside(result, (source >= 0) & (source < width), fill)


def _tap_weights(fraction: Tensor, interpolation: Interpolation) -> list[Tensor]:
    """Weights of the neighbours at −1, 0, 1, 2 (cubic convolution, Keys 1981) or 0, 1."""
    if interpolation == "bilinear":
        return [1 - fraction, fraction]

    def near(distance: Tensor) -> Tensor:
        return ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1

    def far(distance: Tensor) -> Tensor:
        return ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC

    return [far(fraction + 1), near(fraction), near(1 - fraction), far(2 - fraction)]


def _row_windows(images: Tensor, starts: Tensor, length: int) -> Tensor:
    """Return (n, C, h, length): row y of image i from column starts[i, y] on, the edge pixels repeated beyond the image."""
    num_images, channels, height, width = images.shape
    if images.device.type != "cpu":
        columns = (starts[:, :, None] + torch.arange(length, device=images.device)).clamp(0, width - 1)
        return images.gather(3, columns[:, None].expand(-1, channels, -1, -1))
    margin = max(0, -int(starts.min()), int(starts.max()) + length - width)
    padded = np.empty((num_images, channels, height, width + 2 * margin), dtype=np.uint8)
    source = images.numpy()
    padded[..., :margin] = source[..., :1]
    padded[..., margin : margin + width] = source
    padded[..., margin + width :] = source[..., -1:]
    windows = np.lib.stride_tricks.sliding_window_view(padded, length, axis=3)
    picked = windows[np.arange(num_images)[:, None], :, np.arange(height), starts.numpy() + margin]  # (n, h, C, length)
    return torch.from_numpy(picked).transpose(1, 2)


def _fill_outside(images: Tensor, inside: Tensor, fill: Tensor) -> Tensor:
    """Put `fill` (C,) where `inside` (n, h, w) is false, by arithmetic on bytes: torch's selecting kernels are ten times slower."""
    kept = inside[:, None].to(torch.uint8)
    return images.mul_(kept).add_((1 - kept) * fill[:, None, None])
