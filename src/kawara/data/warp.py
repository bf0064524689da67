"""Geometry of uint8 images: rotation, shear, translation, each image with an amount of its own.

Pillow's conventions: an output pixel (x, y) looks up the source at an affine function of (x + ½, y + ½); rotation turns
counter-clockwise about the centre, shear keeps the top left corner.

Differs from Pillow: the cubic kernel is torch's (a = −0.75 instead of −1), and taps beyond the edge read the fill colour instead of
the edge, so that the image meets its surroundings without a jagged line. Both make no difference but on edges.

Shear moves whole rows (or columns) and needs one-dimensional taps only: a quarter of the time of the general warp. Translation is by
whole pixels, as in AutoAugment's own code; Pillow's cubic interpolation at a constant fraction would only blur.

Axis letters: n images, C channels, h w pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kawara.data.crops import Border
from kawara.data.point_ops import to_uint8
from kawara.data.preprocessing import Interpolation
from kawara.data.randomness import Floats, Indices

_A = -0.75
_CUBIC_COEFFICIENTS = np.array(  # of 1, f, f², f³, for each tap
    [
        [0, _A, -2 * _A, _A],
        [1, 0, -(_A + 3), _A + 2],
        [0, -_A, 2 * _A + 3, -(_A + 2)],
        [0, 0, _A, -_A],
    ]
)


def rotate(images: Tensor, degrees: Floats, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Turn uint8 (n, C, h, w) counter-clockwise by `degrees` (n,) about the centre; `fill` is uint8 (C,)."""
    return rotate_and_shift(images, degrees, np.zeros((len(degrees), 2)), fill, interpolation)


def rotate_and_shift(
    images: Tensor, degrees: Floats, shifts: Floats, fill: Tensor, interpolation: Interpolation, border: Border = "mean"
) -> Tensor:
    """Rotate about the centre, looking up `shifts` (n, 2) pixels further in x and y.

    Outside is `fill`, or the mirrored image for the border "reflect".
    """
    height, width = images.shape[-2:]
    angle = -np.deg2rad(degrees)[:, None]
    across, down = (np.arange(width) + 0.5 - width / 2) * (2 / width), (np.arange(height) + 0.5 - height / 2) * (2 / height)
    # grid_sample wants the source position with −1 and 1 at the outer edges: a sum of what depends on x and what depends on y
    by_column = np.stack((np.cos(angle) * across, -np.sin(angle) * across * (width / height)), axis=1)
    by_row = (
        np.stack((np.sin(angle) * down * (height / width), np.cos(angle) * down), axis=1) + (shifts * (2 / width, 2 / height))[..., None]
    )
    grid = _to_device(by_column, images)[:, :, None, :] + _to_device(by_row, images)[:, :, :, None]
    grid, values, background = grid.permute(0, 2, 3, 1), images.float(), fill.float()[:, None, None]
    if border == "reflect":
        values = torch.nn.functional.grid_sample(values, grid, interpolation, "reflection", align_corners=False).add_(0.5)
    else:
        values = torch.nn.functional.grid_sample(values.sub_(background), grid, interpolation, "zeros", align_corners=False)
        values.add_(background + 0.5)
    return to_uint8(values.clamp_(0, 255))


def shear_x(images: Tensor, slopes: Floats, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Look up row y at x + slope · y, with slopes (n,)."""
    height, width = images.shape[-2:]
    shifts = slopes[:, None] * (np.arange(height) + 0.5)
    whole = np.floor(shifts)
    taps = _to_device(_tap_weights(shifts - whole, interpolation), images)[:, :, None, :, None]
    length = width + len(taps) - 1
    starts = whole.astype(np.int64) - (len(taps) // 2 - 1)
    windows = _row_windows(images, np.maximum(np.minimum(starts, width), -length), length, fill).float()
    values = windows[..., :width] * taps[0]
    for position in range(1, len(taps)):
        values.addcmul_(windows[..., position : position + width], taps[position])
    return to_uint8(values.add_(0.5).clamp_(0, 255))


def shear_y(images: Tensor, slopes: Floats, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Look up column x at y + slope · x."""
    return shear_x(images.transpose(2, 3).contiguous(), slopes, fill, interpolation).transpose(2, 3)


def translate(images: Tensor, shifts: Floats, fill: Tensor) -> Tensor:
    """Look up `shifts` (n, 2) pixels further in x and y, rounded to whole ones."""
    height, width = images.shape[-2:]
    result = fill[:, None, None].repeat(len(images), 1, height, width)
    for image, target, (x, y) in zip(images, result, np.rint(shifts).astype(np.int64).tolist()):
        kept_rows, kept_columns = height - abs(y), width - abs(x)
        if kept_rows > 0 and kept_columns > 0:
            source = image[:, max(0, y) : max(0, y) + kept_rows, max(0, x) : max(0, x) + kept_columns]
            target[:, max(0, -y) : max(0, -y) + kept_rows, max(0, -x) : max(0, -x) + kept_columns] = source
    return result


def _tap_weights(fraction: Floats, interpolation: Interpolation) -> Floats:
    """Weights, first axis, of the neighbours at −1, 0, 1, 2 (cubic convolution, Keys 1981) or 0, 1."""
    if interpolation == "bilinear":
        return np.stack((1 - fraction, fraction))
    powers = np.empty((4, *fraction.shape))
    powers[0], powers[1] = 1, fraction
    np.multiply(fraction, fraction, out=powers[2])
    np.multiply(powers[2], fraction, out=powers[3])
    return (_CUBIC_COEFFICIENTS @ powers.reshape(4, -1)).reshape(powers.shape)


def _to_device(values: npt.NDArray[np.floating], images: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(images.device, non_blocking=True)


def _row_windows(images: Tensor, starts: Indices, length: int, fill: Tensor) -> Tensor:
    """Return (n, C, h, length): row y of image i from column starts[i, y] on, `fill` beyond the image."""
    num_images, channels, height, width = images.shape
    if images.device.type != "cpu":
        padded = fill[:, None, None].repeat(num_images, 1, height, width + 2)
        padded[..., 1:-1] = images
        first = torch.from_numpy(starts).to(images.device, non_blocking=True)
        columns = (first[:, :, None] + torch.arange(1, length + 1, device=images.device)).clamp(0, width + 1)
        return padded.gather(3, columns[:, None].expand(-1, channels, -1, -1))
    margin = max(0, -int(starts.min()), int(starts.max()) + length - width)
    stride = width + 2 * margin
    buffer = np.empty((num_images, channels, height, stride), dtype=np.uint8)
    buffer[..., :margin] = buffer[..., margin + width :] = fill.numpy()[:, None, None]
    buffer[..., margin : margin + width] = images.numpy()
    # All windows of the flat buffer, as a view; picking rows of it copies whole runs of bytes.
    windows = np.ndarray((buffer.size - length + 1, length), dtype=np.uint8, buffer=buffer.data, strides=(1, 1))
    rows = np.arange(0, buffer.size, stride).reshape(num_images, channels, height)
    return torch.from_numpy(windows[rows + (starts + margin)[:, None, :]])
