"""What knowing nothing gives, and when a number of right answers says more than that.

A model that has learned nothing about the images can still know how frequent each class is. Its best answer is always the same one:

    accuracy   q = max_k f_k                                  f_k: share of class k among the labels
    loss       H = −Σ_k g_k log g_k,  g = (1 − ε) f + ε/K     the entropy of the smoothed frequencies, in nats

H is the smallest expected loss of any constant answer for targets smoothed by ε. Mixup and CutMix blend the targets of two images and leave
their mean as it is, so H holds with them, too. r right answers among n independent images are compared with q by the exact binomial
distribution (Clopper and Pearson, 1934), because n may be small and q near 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special


@dataclass(frozen=True)
class Chance:
    """What knowing nothing gives on the data of a run."""

    num_classes: int
    largest_in_training: float
    """q of the training images, as the sampler shows them."""
    largest_in_validation: float
    loss: float
    """H, in nats."""

    @classmethod
    def of(
        cls,
        training: NDArray[np.integer],
        validation: NDArray[np.integer],
        num_classes: int,
        *,
        smoothing: float = 0.0,
        balanced: bool = False,
    ) -> Chance:
        """Measure it on labels (n,). `balanced`: the sampler shows every class equally often."""
        shown = np.full(num_classes, 1 / num_classes) if balanced else frequencies(training, num_classes)
        largest_seen = float(shown.max())
        return cls(num_classes, largest_seen, float(frequencies(validation, num_classes).max()), constant_loss(shown, smoothing))


def frequencies(labels: NDArray[np.integer], num_classes: int) -> NDArray[np.float64]:
    """Return the share of each class, (K,)."""
    return np.bincount(labels, minlength=num_classes) / max(len(labels), 1)


def constant_loss(shares: Sequence[float] | NDArray[np.float64], smoothing: float = 0.0) -> float:
    """Return H for class shares (K,) and label smoothing ε, in nats."""
    smoothed = (1 - smoothing) * np.asarray(shares, dtype=np.float64) + smoothing / len(shares)
    return float(-special.xlogy(smoothed, smoothed).sum())


def chance_of_as_many(right: int, num_images: int, rate: float) -> float:
    """Return P(X ≥ right) for X ~ Binomial(num_images, rate): how likely so many right answers are by chance."""
    return 1.0 if right <= 0 else float(special.bdtrc(right - 1, num_images, rate))


def highest_accuracy(right: int, num_images: int, level: float = 0.99) -> float:
    """Return the exact upper bound of the accuracy: were it larger, so few right answers would have a probability below 1 − level."""
    return 1.0 if right >= num_images else float(special.betaincinv(right + 1, num_images - right, level))
