"""From an upright uint8 image to what the model sees: the one definition for evaluation, cache, prediction and export.

    crop      cover the box floor(image_size / crop_fraction) (for squares: bring the shorter side to it), then cut the centre
    squash    resize to image_size without keeping the aspect ratio (the JAX ViTs)

The first resize is what the cache keeps, so that `place(shrink(x))` equals `place(x)` bit for bit. Resizing is antialiased and
works on uint8 throughout; it differs from Pillow's by at most one level.

Axis letters: B batch, C channels, H W source pixels, h w pixels of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kawara.errors import ConfigError, DataError

ImageArray = npt.NDArray[np.uint8]
Interpolation = Literal["bicubic", "bilinear"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preprocessing:
    """Say how an image becomes the model's input. Lists (from JSON) become tuples.

    `crop_fraction` is the share of the covered box that the centre crop keeps: 0.875 is 224 of 256, 1.0 is no margin.
    `mean` and `std` are on the scale 0 to 1, one number for each channel.
    """

    image_size: tuple[int, int] = (224, 224)
    color: Literal["rgb", "grey"] = "rgb"
    resize: Literal["crop", "squash"] = "crop"
    crop_fraction: float = 0.875
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("image_size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, value, allowed in (
            ("color", self.color, ("rgb", "grey")),
            ("resize", self.resize, ("crop", "squash")),
            ("interpolation", self.interpolation, ("bicubic", "bilinear")),
        ):
            if value not in allowed:
                raise ConfigError(f"preprocessing.{name} is not known.", got=value, allowed=", ".join(allowed))
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ConfigError("preprocessing.image_size is two positive numbers, height and width.", got=self.image_size)
        if not 0 < self.crop_fraction <= 1:
            raise ConfigError("preprocessing.crop_fraction is out of range.", got=self.crop_fraction, allowed="0 < crop_fraction ≤ 1")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ConfigError(
                    f"preprocessing.{name} needs one number for each of the {self.channels} channels.",
                    got=values,
                    remedy="one number for grey images, three for colour",
                )
        if min(self.std) <= 0:
            raise ConfigError("preprocessing.std must be positive.", got=self.std)

    @property
    def channels(self) -> int:
        return 1 if self.color == "grey" else 3

    @property
    def stored_side(self) -> int:
        """The shorter side that is enough for `place`: what the cache keeps and what a scaled decoder must not go below."""
        return max(self._box)

    @property
    def _box(self) -> tuple[int, int]:
        if self.resize == "squash":
            return self.image_size
        height, width = self.image_size
        return floor(height / self.crop_fraction), floor(width / self.crop_fraction)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (h, w) after the first resize. Applying it twice changes nothing: all arithmetic is in integers.

        Without branches, so that the sizes may be the symbols of an exported graph.
        """
        box_height, box_width = self._box
        if self.resize == "squash":
            return box_height, box_width
        larger: Any = torch.sym_max
        return larger(box_height, box_width * height // width), larger(box_width, box_height * width // height)

    def shrink(self, image_u8: ImageArray) -> ImageArray:
        """Return (H, W, C) reduced to what the cache keeps; an image that is not larger comes back as it is."""
        image_u8 = self._checked(image_u8)
        height, width = image_u8.shape[:2]
        target = self.resized_size(height, width)
        if target[0] * target[1] >= height * width:
            return image_u8
        resized = resize(as_batch(image_u8), target, self.interpolation)[0]
        return np.ascontiguousarray(resized.permute(1, 2, 0).numpy())

    def place(self, image_u8: ImageArray) -> Tensor:
        """Return the evaluation geometry, uint8 (C, h, w), of an original (H, W, C) or of a shrunk image."""
        return self.place_batch(as_batch(self._checked(image_u8)))[0]

    def place_batch(self, images_u8: Tensor) -> Tensor:
        """Return the evaluation geometry, uint8 (B, C, h, w), of images (B, C, H, W) of one size."""
        images_u8 = resize(images_u8, self.resized_size(*images_u8.shape[-2:]), self.interpolation)
        (height, width), (wanted_height, wanted_width) = images_u8.shape[-2:], self.image_size
        top, left = round((height - wanted_height) / 2), round((width - wanted_width) / 2)
        return images_u8[..., top : top + wanted_height, left : left + wanted_width].contiguous()

    def normalise(self, images_u8: Tensor, device: torch.device | str | None = None, out: Tensor | None = None) -> Tensor:
        """Return (x / 255 − mean) / std as float32 (B, C, h, w), on `device` if given, in `out` if given."""
        if device is not None:
            images_u8 = images_u8.to(device, non_blocking=True)
        result = torch.empty(images_u8.shape, dtype=torch.float32, device=images_u8.device) if out is None else out
        assert images_u8.shape[-3] == self.channels, f"expected {self.channels} channels, got {tuple(images_u8.shape)}"
        result.copy_(images_u8)
        for channel, (mean, std) in enumerate(zip(self.mean, self.std)):
            plane = result[..., channel, :, :]
            # shift + scale·x in one pass; a scalar tensor on the CPU goes with a plane on any device.
            torch.add(torch.tensor(-mean / std), plane, alpha=1 / (255 * std), out=plane)
        return result

    def _checked(self, image_u8: ImageArray) -> ImageArray:
        if image_u8.dtype != np.uint8 or image_u8.ndim != 3 or image_u8.shape[2] != self.channels or image_u8.size == 0:
            raise DataError(
                "An image does not fit the preprocessing.",
                got=f"{image_u8.dtype} {image_u8.shape}",
                allowed=f"uint8 (height, width, {self.channels})",
            )
        return image_u8


def resize(images_u8: Tensor, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Tensor:
    """Resize uint8 (B, C, H, W) to (B, C, *size), antialiased; the same size is returned as it is.

    On a CPU the result may be channels-last in memory: that is the layout for which torch has a vectorised path.
    """
    if tuple(images_u8.shape[-2:]) == tuple(size):
        return images_u8
    if images_u8.device.type != "cpu":
        wide = torch.nn.functional.interpolate(images_u8.float(), size, mode=interpolation, antialias=True, align_corners=False)
        return wide.round_().clamp_(0, 255).to(torch.uint8)
    images_u8 = images_u8.contiguous(memory_format=torch.channels_last)
    if len(images_u8) == 1:  # torch calls the layout of a single image ambiguous and leaves the fast path unless all strides say it
        _, channels, height, width = images_u8.shape
        images_u8 = images_u8.as_strided(images_u8.shape, (channels * height * width, 1, width * channels, channels))
    return torch.nn.functional.interpolate(images_u8, size, mode=interpolation, antialias=True, align_corners=False)


def as_batch(image_u8: ImageArray) -> Tensor:
    """Return (1, C, H, W) that shares memory with (H, W, C) where torch allows it, channels-last in memory."""
    if not image_u8.flags.writeable or any(stride < 0 for stride in image_u8.strides):
        image_u8 = image_u8.copy()
    return torch.from_numpy(image_u8)[None].permute(0, 3, 1, 2)
