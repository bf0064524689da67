"""What is left of a model's accuracy when its images are spoiled (corruptions.py).

Naseer et al., arXiv 2105.10497, fig. 2: accuracy against the share of tiles dropped, for tiles at random, the salient ones and the others.

Which images were answered right is kept one by one, so that two models can be compared in pairs on the very same pixels.

Axes: B batch, C channels, H W pixels, n images, S strengths, D draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kawara.analysis.corruptions import CORRUPTIONS, Draw, Unit, corrupt
from kawara.analysis.evaluation_mode import evaluating
from kawara.data.loading import Batch
from kawara.data.preprocessing import Preprocessing
from kawara.errors import DataError, UnknownNameError
from kawara.models import ImageModel

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Robustness:
    """What a model answers under one corruption."""

    corruption: str
    unit: Unit
    strengths: tuple[float, ...]
    right: NDArray[np.bool_]
    """(S, D, n): whether image n was answered right at each strength, in each draw."""

    @property
    def accuracy(self) -> Floats:
        """(S,) share of right answers, over draws and images."""
        return self.right.mean(axis=(1, 2))

    @property
    def spread(self) -> Floats:
        """(S,) standard deviation of the accuracy from draw to draw; NaN for a single draw."""
        of_draws = self.right.mean(axis=2)
        return of_draws.std(axis=1, ddof=1) if of_draws.shape[1] > 1 else np.full(len(of_draws), np.nan)


@torch.no_grad()
def robustness(
    model: ImageModel,
    batches: Iterable[Batch],
    preprocessing: Preprocessing,
    corruptions: Sequence[str] = ("drop_random", "shuffle", "shift", "noise", "blur"),
    *,
    strengths: Mapping[str, Sequence[float]] | None = None,
    num_draws: int | None = None,
    tiles: tuple[int, int] = (14, 14),
    salience: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Robustness]:
    """Measure a model on batches of an evaluation loader under each corruption.

    Args:
        strengths: by name of the corruption; others keep those of `CORRUPTIONS`.
        num_draws: of the random corruptions; None: theirs.
        tiles: (h, w) of the tiles that are dropped.
        salience: images (B, C, H, W) in [0, 1] to maps (B, any, any), higher where more salient; for drop_salient and drop_non_salient.
            Give the same one to two models that are to be compared.

    Raises ConfigError for a corruption, strength or tiling that does not exist or fit, DataError where there is no image.
    """
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise UnknownNameError("corruption", name, CORRUPTIONS)
    levels = {name: tuple((strengths or {}).get(name, CORRUPTIONS[name].strengths)) for name in corruptions}
    draws = {name: 1 if CORRUPTIONS[name].num_draws == 1 else num_draws or CORRUPTIONS[name].num_draws for name in corruptions}
    right: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in corruptions}
    with evaluating(model):
        for batch in batches:
            image_01 = denormalise(batch.images, preprocessing)
            maps = salience(image_01) if salience is not None else None
            for name in corruptions:
                answers = torch.empty(len(levels[name]), draws[name], len(image_01), dtype=torch.bool)
                for number in range(draws[name]):
                    draw = Draw(batch.indices, number, seed, tiles, maps)
                    for level, strength in enumerate(levels[name]):
                        spoiled = normalise(corrupt(image_01, name, strength, draw), preprocessing)
                        answers[level, number] = (model(spoiled).argmax(dim=1) == batch.labels).cpu()
                right[name].append(answers.numpy())
    if not all(right.values()):
        raise DataError("There are no images to measure robustness on.")
    return {name: Robustness(name, CORRUPTIONS[name].unit, levels[name], np.concatenate(right[name], axis=2)) for name in corruptions}


def denormalise(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return normalised images (B, C, H, W) on the scale 0 to 1."""
    mean, std = _statistics(image, preprocessing)
    return (image * std + mean).clamp_(0, 1)


def normalise(image_01: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return images (B, C, H, W) on the scale 0 to 1 normalised."""
    mean, std = _statistics(image_01, preprocessing)
    return (image_01 - mean) / std


def _statistics(like: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    mean, std = (
        torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    return mean, std
