"""Geometry of uint8 images: rotation, shear, translation, each image with an amount of its own.

Pillow's conventions: an output pixel (x, y) looks up the source at an affine function of (x + ½, y + ½); rotation turns
counter-clockwise about the centre, shear keeps the top left corner.

Differs from Pillow: the cubic kernel is torch's (a = −0.75 instead of −1), and taps beyond the edge read the fill colour instead of
the edge, so that the image meets its surroundings without a jagged line. Both make no difference but on edges.

Shear and translation move whole rows (or columns) and need one-dimensional taps only: a quarter of the time of the general warp.

Axis letters: n images, C channels, h w pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kawara.data.crops import Border
from kawara.data.point_ops import to_uint8
from kawara.data.preprocessing import Interpolation

_A = -0.75
_CUBIC_COEFFICIENTS = (  # of 1, f, f², f³, for each tap
    (0.0, _A, -2 * _A, _A),
    (1.0, 0.0, -(_A + 3), _A + 2),
    (0.0, -_A, 2 * _A + 3, -(_A + 2)),
    (0.0, 0.0, _A, -_A),
)


def rotate(images: Tensor, degrees: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Turn uint8 (n, C, h, w) counter-clockwise by `degrees` (n,) about the centre; `fill` is uint8 (C,)."""
    return rotate_and_shift(images, degrees, torch.zeros_like(degrees), torch.zeros_like(degrees), fill, interpolation)


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
    cosine, sine = (part.float()[:, None, None] for part in (angle.cos(), angle.sin()))
    across = torch.arange(width, device=images.device, dtype=torch.float32) + (0.5 - width / 2)
    down = (torch.arange(height, device=images.device, dtype=torch.float32) + (0.5 - height / 2))[:, None]
    # grid_sample wants the source position with −1 and 1 at the outer edges
    grid = torch.empty((len(images), height, width, 2), device=images.device)
    torch.add(cosine * (2 / width) * across, (sine * down + shifts_x.float()[:, None, None]) * (2 / width), out=grid[..., 0])
    torch.add(-sine * (2 / height) * across, (cosine * down + shifts_y.float()[:, None, None]) * (2 / height), out=grid[..., 1])
    values, background = images.float(), fill.float()[:, None, None]
    if border == "reflect":
        values = torch.nn.functional.grid_sample(values, grid, interpolation, "reflection", align_corners=False).add_(0.5)
    else:
        values = torch.nn.functional.grid_sample(values.sub_(background), grid, interpolation, "zeros", align_corners=False)
        values.add_(background + 0.5)
    return to_uint8(values.clamp_(0, 255))


def shift_x(images: Tensor, slopes: Tensor, offsets: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Look up row y at x + slope · y + offset: a shear by `slopes` (n,) and a translation by `offsets` (n,) pixels."""
    width = images.shape[3]
    rows = torch.arange(images.shape[2], device=images.device) + 0.5
    shifts = slopes[:, None] * rows + offsets[:, None]
    whole = shifts.floor()
    taps = _tap_weights((shifts - whole).float()[:, None, :, None], interpolation)
    length = width + len(taps) - 1
    starts = whole.long() - (len(taps) // 2 - 1)
    windows = _row_windows(images, starts.clamp(-length, width), length, fill).float()
    values = windows[..., :width] * taps[0]
    for position, weight in enumerate(taps[1:], start=1):
        values.addcmul_(windows[..., position : position + width], weight)
    return to_uint8(values.add_(0.5).clamp_(0, 255))


def shift_y(images: Tensor, slopes: Tensor, offsets: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Look up column x at y + slope · x + offset."""
    return shift_x(images.transpose(2, 3).contiguous(), slopes, offsets, fill, interpolation).transpose(2, 3)


def _tap_weights(fraction: Tensor, interpolation: Interpolation) -> tuple[Tensor, ...]:
    """Weights of the neighbours at −1, 0, 1, 2 (cubic convolution, Keys 1981) or 0, 1, each shaped like `fraction`."""
    if interpolation == "bilinear":
        return 1 - fraction, fraction
    powers = torch.stack((torch.ones_like(fraction), fraction, fraction * fraction, fraction**3), dim=-1)
    coefficients = torch.tensor(_CUBIC_COEFFICIENTS, device=fraction.device)
    return (powers.unsqueeze(-2) * coefficients).sum(-1).unbind(-1)


def _row_windows(images: Tensor, starts: Tensor, length: int, fill: Tensor) -> Tensor:
    """Return (n, C, h, length): row y of image i from column starts[i, y] on, `fill` beyond the image."""
    num_images, channels, height, width = images.shape
    if images.device.type != "cpu":
        padded = fill[:, None, None].repeat(num_images, 1, height, width + 2)
        padded[..., 1:-1] = images
        columns = (starts[:, :, None] + torch.arange(1, length + 1, device=images.device)).clamp(0, width + 1)
        return padded.gather(3, columns[:, None].expand(-1, channels, -1, -1))
    first = starts.numpy()
    margin = max(0, -int(first.min()), int(first.max()) + length - width)
    stride = width + 2 * margin
    buffer = np.empty((num_images, channels, height, stride), dtype=np.uint8)
    buffer[..., :margin] = buffer[..., margin + width :] = fill.numpy()[:, None, None]
    buffer[..., margin : margin + width] = images.numpy()
    # All windows of the flat buffer, as a view; picking rows of it copies whole runs of bytes.
    windows = np.ndarray((buffer.size - length + 1, length), dtype=np.uint8, buffer=buffer.data, strides=(1, 1))
    rows = np.arange(0, buffer.size, stride).reshape(num_images, channels, height)
    return torch.from_numpy(windows[rows + (first + margin)[:, None, :]])
