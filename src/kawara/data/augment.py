"""Augmentation of whole uint8 batches, every image with a draw of its own.

Two stages. `place` cuts the image to the model's size (random resized crop, pad and crop, or the evaluation geometry). `transform`
does the rest on the batch: flips, rotation and translation, RandAugment, 3-Augment, colour jitter on uint8; then normalisation; then
noise and random erasing. Images that drew the same operation go through it together.

Everything is drawn from (seed, epoch, index): an image's result depends neither on its batch, nor on the order, nor on who computes it.

Differs from DeiT: cubic warps have torch's kernel (a = −0.75), not Pillow's (−1); erased pixels come from a table of N(0, 1) numbers.

Axis letters: B batch, C channels, H W source pixels, h w pixels of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kawara.data import color_ops, point_ops
from kawara.data.crops import Border, pad_and_crop, random_resized_box
from kawara.data.erasing import add_noise, random_erasing
from kawara.data.preprocessing import ImageArray, Preprocessing, as_batch, resize
from kawara.data.rand_augment import RandAugmentConfig, apply_in_place, rand_augment
from kawara.data.randomness import Indices, uniform
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
    `repeats`       showings of an image in a row; read by the sampler
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
    repeats: int = 1

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
        if self.repeats < 1:
            raise ConfigError("augment.repeats is out of range.", got=self.repeats, allowed="1 or more")
        if self.rand_augment is not None:
            RandAugmentConfig.parse(self.rand_augment)


class Augmentation:
    """The augmentation of one run. Holds no state: every method may be called from any thread, in any order."""

    def __init__(self, config: AugmentConfig, preprocessing: Preprocessing, seed: int):
        self.config, self.preprocessing, self.seed = config, preprocessing, seed
        self._rand_augment = None if config.rand_augment is None else RandAugmentConfig.parse(config.rand_augment)
        self._mean_color = torch.tensor([round(255 * mean) for mean in preprocessing.mean], dtype=torch.uint8)

    def place(self, image_u8: ImageArray, epoch: int, index: int) -> Tensor:
        """Cut (H, W, C) to the model's size with the crop of (epoch, index); returns uint8 (C, h, w)."""
        if self.config.crop != "random_resized":
            return self._pad(self.preprocessing.place(image_u8)[None], epoch, np.array([index]))[0]
        top, left, height, width = self._crop_box(image_u8.shape[0], image_u8.shape[1], epoch, index)
        crop = image_u8[top : top + height, left : left + width].copy()
        return resize(as_batch(crop), self.preprocessing.image_size, self.preprocessing.interpolation)[0].contiguous()

    def place_batch(self, images_u8: Tensor, epoch: int, indices: Indices) -> Tensor:
        """Do `place` for uint8 (B, C, H, W): the same draws and the same result; the input is left as it is."""
        if self.config.crop != "random_resized":
            return self._pad(self.preprocessing.place_batch(images_u8), epoch, indices)
        size = self.preprocessing.image_size
        placed = images_u8.new_empty((*images_u8.shape[:2], *size))
        for image, target, index in zip(images_u8, placed, np.asarray(indices).tolist()):
            top, left, height, width = self._crop_box(image.shape[1], image.shape[2], epoch, index)
            crop = image[None, :, top : top + height, left : left + width]
            target.copy_(resize(crop, size, self.preprocessing.interpolation)[0])
        return placed

    def transform(self, images_u8: Tensor, epoch: int, indices: Indices, out: Tensor | None = None) -> Tensor:
        """Augment and normalise uint8 (B, C, h, w) on its device; returns float32 (B, C, h, w), in `out` if given.

        The input is left as it is.
        """
        with torch.inference_mode(False), torch.no_grad():
            images = self._transform_u8(images_u8, epoch, np.asarray(indices, dtype=np.int64))
            normalised = self.preprocessing.normalise(images, out=out)
            where = {"seed": self.seed, "epoch": epoch, "indices": indices}
            if self.config.noise_std > 0:
                add_noise(normalised, self.config.noise_std, **where)
            if self.config.erasing > 0:
                random_erasing(normalised, self.config.erasing, **where)
        return normalised

    def _transform_u8(self, images_u8: Tensor, epoch: int, indices: Indices) -> Tensor:
        config = self.config
        images = images_u8.clone(memory_format=torch.contiguous_format)
        for axis, probability, stream in ((3, config.flip, "flip"), (2, config.vertical_flip, "vertical_flip")):
            if probability > 0:
                self._flip(images, axis, uniform(self.seed, epoch, indices, stream, 1)[:, 0] < probability)
        if config.rotation_degrees > 0 or config.translation > 0:
            self._rotate(images, uniform(self.seed, epoch, indices, "rotation", 3))
        if self._rand_augment is not None:
            fill = self._mean_color.to(images.device, non_blocking=True)
            interpolation = self.preprocessing.interpolation
            rand_augment(images, self._rand_augment, fill, interpolation, seed=self.seed, epoch=epoch, indices=indices)
        if config.three_augment:
            self._three_augment(images, uniform(self.seed, epoch, indices, "three_augment", 2))
        if config.color_jitter > 0:
            self._jitter(images, uniform(self.seed, epoch, indices, "color_jitter", 4))
        return images

    def _crop_box(self, height: int, width: int, epoch: int, index: int) -> tuple[int, int, int, int]:
        config = self.config
        return random_resized_box(height, width, config.crop_scale, config.crop_ratio, seed=self.seed, epoch=epoch, index=index)

    def _pad(self, images: Tensor, epoch: int, indices: Indices) -> Tensor:
        config = self.config
        if config.crop == "none" or config.pad_px == 0:
            return images
        return pad_and_crop(images, config.pad_px, config.border, self._mean_color, seed=self.seed, epoch=epoch, indices=indices)

    def _flip(self, images: Tensor, axis: int, drawn: np.ndarray) -> None:
        places = torch.from_numpy(np.flatnonzero(drawn)).to(images.device, non_blocking=True)
        apply_in_place(images, places, lambda x, _: x.flip(axis), places)

    def _rotate(self, images: Tensor, draws: np.ndarray) -> None:
        config, (height, width) = self.config, images.shape[-2:]
        either_way = 2 * draws - 1
        amounts = either_way * (config.rotation_degrees, config.translation * width, config.translation * height)
        color = self._mean_color if config.border == "mean" else torch.zeros_like(self._mean_color)
        color = color.to(images.device, non_blocking=True)

        def operation(pieces: Tensor, amount: Tensor) -> Tensor:
            return rotate_and_shift(pieces, *amount.T, color, self.preprocessing.interpolation, config.border)

        apply_in_place(images, _all(images), operation, torch.from_numpy(amounts).to(images.device, non_blocking=True))

    def _three_augment(self, images: Tensor, draws: np.ndarray) -> None:
        choice = (draws[:, 0] * 3).astype(np.int64)
        sigmas = 0.1 + 1.9 * draws[:, 1]
        operations = (
            color_ops.grey,
            lambda x, y: point_ops.look_up(x, point_ops.solarize(x, torch.full_like(y, 128))),
            color_ops.gaussian_blur,
        )
        for number, operation in enumerate(operations):
            drawn = np.flatnonzero(choice == number)
            places, values = (torch.from_numpy(a).to(images.device, non_blocking=True) for a in (drawn, sigmas[drawn]))
            apply_in_place(images, places, operation, values)

    def _jitter(self, images: Tensor, draws: np.ndarray) -> None:
        factors = 1 + self.config.color_jitter * (2 * draws[:, :3] - 1)
        orders = _ORDERS_OF_THREE[(draws[:, 3] * 6).astype(np.int64)]
        operations = (
            lambda x, y: point_ops.look_up(x, point_ops.brightness(x, y)),
            lambda x, y: point_ops.look_up(x, point_ops.contrast(x, y)),
            color_ops.saturation,
        )
        for turn in range(3):
            for number, operation in enumerate(operations):
                drawn = np.flatnonzero(orders[:, turn] == number)
                places, values = (torch.from_numpy(a).to(images.device, non_blocking=True) for a in (drawn, factors[drawn, number]))
                apply_in_place(images, places, operation, values)


def _all(images: Tensor) -> Tensor:
    return torch.arange(len(images), device=images.device)
