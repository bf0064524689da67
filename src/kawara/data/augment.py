"""Augmentation of whole uint8 batches, every image with a draw of its own.

Two stages. `place` cuts the image to the model's size (random resized crop, pad and crop, or the evaluation geometry). `transform`
does the rest on the batch: flips, rotation and translation, RandAugment, 3-Augment, colour jitter on uint8; then normalisation; then
noise and random erasing. Images that drew the same operation go through it together.

Everything is drawn from (seed, epoch, index): an image's result depends neither on its batch, nor on the order, nor on who computes it.

Differs from DeiT: cubic warps have torch's kernel (a = −0.75), not Pillow's (−1); erased pixels come from a table of N(0, 1) numbers.

Axis letters: B batch, C channels, H W source pixels, h w pixels of the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kawara.data import color_ops, point_ops, rand_augment
from kawara.data.crops import Border, pad_and_crop, random_resized_box
from kawara.data.erasing import add_noise, random_erasing
from kawara.data.grouping import apply_to
from kawara.data.preprocessing import ImageArray, Preprocessing, as_batch, resize
from kawara.data.rand_augment import RandAugmentConfig
from kawara.data.randomness import Floats, Indices, uniforms
from kawara.data.warp import rotate_and_shift
from kawara.errors import ConfigError

_ORDERS_OF_THREE = np.array(list(permutations(range(3))))


@dataclass(frozen=True)
class AugmentConfig:
    """Say what happens to training images. The defaults change nothing but the crop.

    `crop`          "random_resized" (area `crop_scale`, aspect `crop_ratio`), "pad" (by `pad_px`, for small images) or "none"
    `flip`, `vertical_flip`, `erasing`    probabilities
    `rotation_degrees`, `translation`     largest amount either way; translation as a share of the side
    `border`        what lies outside the image for pad, rotation and translation
    `noise_std`     Gaussian noise in units of the normalised image
    `color_jitter`  strength of brightness, contrast and saturation, in random order
    `rand_augment`  timm's notation, as m9-mstd0.5-inc1
    `three_augment` one of grey, solarise, blur for every image (DeiT III, arXiv 2204.07118)
    """

    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad_px: int = 4
    flip: float = 0.5
    vertical_flip: float = 0.0
    rotation_degrees: float = 0.0
    translation: float = 0.0
    border: Border = "zero"
    noise_std: float = 0.0
    color_jitter: float = 0.0
    rand_augment: str | None = None
    three_augment: bool = False
    erasing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"augment.{name} is a low and a high positive number.", got=(low, high))
        if self.crop_scale[1] > 1:
            raise ConfigError("augment.crop_scale is a share of the image.", got=self.crop_scale, allowed="at most 1")
        for name, allowed in (("crop", ("random_resized", "pad", "none")), ("border", ("zero", "mean", "reflect"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"augment.{name} is not known.", got=getattr(self, name), allowed=", ".join(allowed))
        for name in ("flip", "vertical_flip", "erasing", "translation", "color_jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} is out of range.", got=getattr(self, name), allowed="0 to 1")
        for name in ("pad_px", "rotation_degrees", "noise_std"):
            if getattr(self, name) < 0:
                raise ConfigError(f"augment.{name} is out of range.", got=getattr(self, name), allowed="0 or more")
        if self.rand_augment is not None:
            RandAugmentConfig.parse(self.rand_augment)


class Augmentation:
    """The augmentation of one run. Holds no state: every method may be called from any thread, in any order."""

    def __init__(self, config: AugmentConfig, preprocessing: Preprocessing, seed: int):
        self.config, self.preprocessing, self.seed = config, preprocessing, seed
        self._rand_augment = None if config.rand_augment is None else RandAugmentConfig.parse(config.rand_augment)
        self._streams = _streams(config, self._rand_augment)
        self._mean_color = torch.tensor([round(255 * mean) for mean in preprocessing.mean], dtype=torch.uint8)

    def place(self, image_u8: ImageArray, epoch: int, index: int, out: Tensor | None = None) -> Tensor:
        """Cut (H, W, C) to the model's size with the crop of (epoch, index).

        Returns uint8 (C, h, w), in `out` if given: a row of the batch to be, which saves a copy.
        """
        if self.config.crop != "random_resized":
            placed = self._pad(self.preprocessing.place(image_u8)[None], epoch, np.array([index]))[0]
        else:
            top, left, height, width = self._crop_box(image_u8.shape[0], image_u8.shape[1], epoch, index)
            crop = image_u8[top : top + height, left : left + width].copy()
            placed = resize(as_batch(crop), self.preprocessing.image_size, self.preprocessing.interpolation)[0]
        return placed.contiguous() if out is None else out.copy_(placed)

    def place_batch(self, images_u8: Tensor, epoch: int, indices: Indices) -> Tensor:
        """Do `place` for uint8 (B, C, H, W): the same draws and the same result.

        The input is left as it is; where nothing is to be done, the result is the input.
        """
        if self.config.crop != "random_resized":
            return self._pad(self.preprocessing.place_batch(images_u8), epoch, indices)
        size = self.preprocessing.image_size
        placed = images_u8.new_empty((*images_u8.shape[:2], *size))
        for image, target, index in zip(images_u8, placed, np.asarray(indices).tolist()):
            top, left, height, width = self._crop_box(image.shape[1], image.shape[2], epoch, index)
            crop = image[None, :, top : top + height, left : left + width]
            target.copy_(resize(crop, size, self.preprocessing.interpolation)[0])
        return placed

    def transform(self, images_u8: Tensor, epoch: int, indices: Indices, *, out: Tensor | None = None, overwrite: bool = False) -> Tensor:
        """Augment and normalise uint8 (B, C, h, w) on its device; returns float32 (B, C, h, w), in `out` if given.

        The input is left as it is, unless `overwrite` says that nobody else holds its memory: that saves a copy.
        """
        indices = np.asarray(indices, dtype=np.int64)
        numbers = uniforms(self.seed, epoch, indices, self._streams)
        with torch.no_grad():
            images = images_u8.contiguous()
            if not overwrite and images.data_ptr() == images_u8.data_ptr():
                images = images.clone()
            self._change(images, numbers)
            normalised = self.preprocessing.normalise(images, out=out)
            if self.config.noise_std > 0:
                add_noise(normalised, self.config.noise_std, numbers["noise"])
            if self.config.erasing > 0:
                random_erasing(normalised, self.config.erasing, numbers["erasing"], seed=self.seed, epoch=epoch, indices=indices)
        return normalised

    def _change(self, images: Tensor, numbers: Mapping[str, Floats]) -> None:
        """Do all that happens to uint8 images, in place."""
        for stream, axis, probability in (("flip", 3, self.config.flip), ("vertical_flip", 2, self.config.vertical_flip)):
            if probability > 0:
                drawn = np.flatnonzero(numbers[stream][:, 0] < probability)
                apply_to(images, drawn, lambda pieces, _, axis=axis: pieces.flip(axis), np.zeros(len(drawn)))
        if "rotation" in numbers:
            self._rotate(images, numbers["rotation"])
        if self._rand_augment is not None:
            rounds = rand_augment.draw(self._rand_augment, numbers)
            fill = self._mean_color.to(images.device, non_blocking=True)
            rand_augment.rand_augment(images, self._rand_augment, rounds, fill, self.preprocessing.interpolation)
        if "three_augment" in numbers:
            _three_augment(images, numbers["three_augment"])
        if "color_jitter" in numbers:
            _jitter(images, self.config.color_jitter, numbers["color_jitter"])

    def _crop_box(self, height: int, width: int, epoch: int, index: int) -> tuple[int, int, int, int]:
        config = self.config
        return random_resized_box(height, width, config.crop_scale, config.crop_ratio, seed=self.seed, epoch=epoch, index=index)

    def _pad(self, images: Tensor, epoch: int, indices: Indices) -> Tensor:
        config = self.config
        if config.crop == "none" or config.pad_px == 0:
            return images
        return pad_and_crop(images, config.pad_px, config.border, self._mean_color, seed=self.seed, epoch=epoch, indices=indices)

    def _rotate(self, images: Tensor, numbers: Floats) -> None:
        config, (height, width) = self.config, images.shape[-2:]
        amounts = (2 * numbers - 1) * (config.rotation_degrees, config.translation * width, config.translation * height)
        color = self._mean_color if config.border == "mean" else torch.zeros_like(self._mean_color)
        color = color.to(images.device, non_blocking=True)

        def operation(pieces: Tensor, amount: Floats) -> Tensor:
            return rotate_and_shift(pieces, amount[:, 0], amount[:, 1:], color, self.preprocessing.interpolation, config.border)

        apply_to(images, np.arange(len(images)), operation, amounts)


def _streams(config: AugmentConfig, rand_augment_config: RandAugmentConfig | None) -> dict[str, int]:
    """Say how many numbers of which stream `transform` reads for each image: only those of what is on."""
    wanted = {
        "flip": 1 if config.flip > 0 else 0,
        "vertical_flip": 1 if config.vertical_flip > 0 else 0,
        "rotation": 3 if config.rotation_degrees > 0 or config.translation > 0 else 0,
        "three_augment": 2 if config.three_augment else 0,
        "color_jitter": 4 if config.color_jitter > 0 else 0,
        "noise": 1 if config.noise_std > 0 else 0,
        "erasing": 1 if config.erasing > 0 else 0,
        **({} if rand_augment_config is None else rand_augment.streams(rand_augment_config)),
    }
    return {stream: count for stream, count in wanted.items() if count}


def _three_augment(images: Tensor, numbers: Floats) -> None:
    choice = (numbers[:, 0] * 3).astype(np.int64)
    sigmas = 0.1 + 1.9 * numbers[:, 1]
    operations = (color_ops.grey, lambda x, y: point_ops.solarize(x, np.full_like(y, 128)), color_ops.gaussian_blur)
    for number, operation in enumerate(operations):
        drawn = np.flatnonzero(choice == number)
        apply_to(images, drawn, operation, sigmas[drawn])


def _jitter(images: Tensor, strength: float, numbers: Floats) -> None:
    factors = 1 + strength * (2 * numbers[:, :3] - 1)
    orders = _ORDERS_OF_THREE[(numbers[:, 3] * len(_ORDERS_OF_THREE)).astype(np.int64)]
    for turn in orders.T:
        for number, operation in enumerate((point_ops.brightness, point_ops.contrast, color_ops.saturation)):
            drawn = np.flatnonzero(turn == number)
            apply_to(images, drawn, operation, factors[drawn, number])
