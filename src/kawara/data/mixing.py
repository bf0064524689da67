"""Mixup and CutMix of a batch with its own reverse, as timm's "batch" mode does; targets carry the label smoothing.

    Mixup    arXiv 1710.09412   x ← λ·x + (1 − λ)·x_partner                     λ ~ Beta(α, α)
    CutMix   arXiv 1905.04899   a box of the partner, side ratio √(1 − λ), is pasted; then λ ← the share of pixels kept

The partner of image i is image B−1−i. One λ for the batch. With an odd batch the middle image is its own partner and stays as it
is: Mixup and CutMix leave it unchanged and its target is its own label, so nothing special is needed.

Axis letters: B batch, C channels, h w pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from kawara.data.randomness import uniform
from kawara.errors import ConfigError


@dataclass(frozen=True)
class MixConfig:
    """Say how batches are mixed. An α of 0 turns that kind off; DeiT uses 0.8 and 1.0.

    `probability` is that of mixing a batch at all; `switch_probability` that of CutMix where both kinds are on.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch_probability: float = 0.5

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ConfigError(f"mix.{name} is the α of a Beta distribution.", got=getattr(self, name), allowed="0 (off) or more")
        for name in ("probability", "switch_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"mix.{name} is a probability.", got=getattr(self, name), allowed="0 to 1")

    @property
    def active(self) -> bool:
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


@dataclass(frozen=True)
class MixDraw:
    """What happens to one batch: `kept` is λ; `box` (top, bottom, left, right) is set for CutMix alone."""

    kept: float = 1.0
    box: tuple[int, int, int, int] | None = None


def smoothed_targets(labels: Tensor, num_classes: int, smoothing: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return (B, K) targets: ε/K everywhere, 1 − ε + ε/K at the label."""
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, dtype=dtype, device=labels.device)
    return targets.scatter_(1, labels.long().unsqueeze(1), 1.0 - smoothing + off)


def draw_mix(config: MixConfig, height: int, width: int, *, seed: int, step: int) -> MixDraw:
    """Draw what happens to the batch of this step; it depends on (seed, step) and the image size alone."""
    if not config.active:
        return MixDraw()
    mix_at_all, switch, center_y, center_x, quantile = uniform(seed, 0, np.array([step]), "mix", 5)[0]
    if mix_at_all >= config.probability:
        return MixDraw()
    use_cutmix = config.cutmix > 0 and (config.mixup == 0 or switch < config.switch_probability)
    kept = _beta(config.cutmix if use_cutmix else config.mixup, float(quantile))
    if not use_cutmix:
        return MixDraw(kept)
    ratio = sqrt(1.0 - kept)
    cut_height, cut_width = int(height * ratio), int(width * ratio)
    y, x = int(center_y * height), int(center_x * width)
    top, bottom = max(0, y - cut_height // 2), min(height, y + cut_height // 2)
    left, right = max(0, x - cut_width // 2), min(width, x + cut_width // 2)
    area = (bottom - top) * (right - left)
    return MixDraw(1.0 - area / (height * width), (top, bottom, left, right))


def mix(
    images: Tensor, labels: Tensor, config: MixConfig, *, num_classes: int, smoothing: float = 0.0, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Mix normalised images (B, C, h, w) with their reverse and return them with soft targets (B, K).

    The draw depends on (seed, step) alone. `images` may be changed in place.
    """
    targets = smoothed_targets(labels, num_classes, smoothing)
    draw = draw_mix(config, *images.shape[-2:], seed=seed, step=step)
    if draw.kept == 1.0:
        return images, targets
    if draw.box is None:
        images = torch.lerp(images.flip(0), images, draw.kept)
    else:
        top, bottom, left, right = draw.box
        images[..., top:bottom, left:right] = images[..., top:bottom, left:right].flip(0)
    return images, torch.lerp(targets.flip(0), targets, draw.kept)


def _beta(alpha: float, quantile: float) -> float:
    """Turn a uniform number into one of Beta(α, α) by the inverse of its distribution function."""
    if alpha == 1.0:
        return quantile
    from scipy.special import betaincinv  # slow to import, and most runs mix nothing

    return float(betaincinv(alpha, alpha, quantile))
