"""Is one side better than the other, and how sure is that? Right and wrong answers of both on the same images.

One model a side. The difference of the accuracies depends only on the images that the two answer differently. Its interval is the paired
percentile bootstrap over the images; the test is McNemar's, exact, with the mid-p value (Fagerland, Lydersen and Laake 2013, BMC Medical
Research Methodology 13:91): with b images right for the first alone, c for the second alone and X ~ Binomial(b + c, ½),

    p = 2 P(X < min(b, c)) + P(X = min(b, c))

Several models a side (seeds). Another training run would have given another difference, which the images cannot tell. The bootstrap is then
hierarchical: resampled images, each with its mean over the seeds, plus a term for the seeds,

    s · √(1/S₁ + 1/S₂) · t,      t ~ Student with S₁ + S₂ − 2 degrees of freedom

with s² the variance of the accuracies of one side, pooled over both. To resample three seeds instead would make the interval far too short.
What differs from run to run on single images is counted with the images and with the seeds, so that the interval errs to the wide side.

How many images tell a difference δ with power 1 − β where the two disagree on a share ψ of them (Connor 1987, Biometrics 43:207):

    n = (z_{1−α/2} √ψ + z_{1−β} √(ψ − δ²))² / δ²

Differences are first − second. Axes: S seeds, n images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kawara.errors import ConfigError

Right = NDArray[np.bool_]
"""(S, n): whether the model of each seed was right on each image; (n,) for one model."""
Decision = Literal[
    "first",
    "second",
    "no difference",
    "cannot know: one seed",
    "cannot know: seeds differ",
    "too few images",
]

NUM_RESAMPLES = 10_000
RELEVANT = 0.02
"""The difference that must have had a good chance to be seen before "no difference" is said."""
SIGNIFICANCE, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Difference:
    """The accuracy of the first side minus that of the second, with its 95 % interval and the probability of one as large by chance."""

    value: float
    interval: tuple[float, float]
    p: float
    disagreement: float
    """Share of the images that one names right and the other wrong, a mean over all pairs of their seeds."""
    num_images: int
    num_seeds: tuple[int, int]


@dataclass(frozen=True)
class McNemar:
    """The exact test of two models on the same images."""

    only_first: int
    only_second: int
    p: float
    """Mid-p, two-sided."""


@dataclass(frozen=True)
class Verdict:
    """What the numbers allow to say."""

    decision: Decision
    difference: Difference
    images_needed: dict[float, int]
    """By difference: so many images would have shown it, with a power of 80 %."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "decision": self.decision,
            "difference": self.difference.value,
            "difference_ci95": list(self.difference.interval),
            "p": self.difference.p,
            "disagreement": self.difference.disagreement,
            "num_images": self.difference.num_images,
            "num_seeds": list(self.difference.num_seeds),
            "images_needed": {f"{value:g}": count for value, count in self.images_needed.items()},
        }


def mcnemar(first: Right, second: Right) -> McNemar:
    """Test whether two models (n,) are right equally often."""
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    fewer = min(b, c)
    p = 1.0 if b == c else 2 * stats.binom.cdf(fewer - 1, b + c, 0.5) + stats.binom.pmf(fewer, b + c, 0.5)
    return McNemar(b, c, float(min(1.0, p)))


def paired_difference(first: Right, second: Right, *, resamples: int = NUM_RESAMPLES, seed: int = 0) -> Difference:
    """Estimate the difference of two sides' accuracies. Raises ConfigError unless both answered the same images."""
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    if first.shape[1] != second.shape[1] or not first.shape[1]:
        raise ConfigError("Both sides must have answered the same images.", got=f"{first.shape[1]} and {second.shape[1]} images")
    by_image = first.mean(axis=0) - second.mean(axis=0)
    draws = _resampled_mean(by_image, resamples, seed) + _seed_term([first, second], resamples, seed)
    value, one_each = float(by_image.mean()), len(first) == len(second) == 1
    low, high = np.percentile(draws, [2.5, 97.5])
    return Difference(
        value=value,
        interval=(float(low), float(high)),
        p=mcnemar(first[0], second[0]).p if one_each else _share_beyond_zero(draws),
        disagreement=float((first[:, None] != second[None, :]).mean()),
        num_images=first.shape[1],
        num_seeds=(len(first), len(second)),
    )


def accuracy_with_seeds(right: Right, *, resamples: int = NUM_RESAMPLES, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Return the mean accuracy of one side and its 95 % interval over images, and seeds where there are several."""
    right = np.atleast_2d(right)
    by_image = right.mean(axis=0)
    low, high = np.percentile(_resampled_mean(by_image, resamples, seed) + _seed_term([right], resamples, seed), [2.5, 97.5])
    return float(by_image.mean()), (max(0.0, float(low)), min(1.0, float(high)))


def images_needed(disagreement: float, difference: float, *, power: float = POWER) -> int:
    """Return how many images show a difference with this power, where the sides disagree on a share `disagreement` of them.

    Where they never disagreed, so many images that a disagreement as large as `difference` would have been seen (rule of three).
    """
    if disagreement == 0:
        return math.ceil(3 / difference)
    psi = max(disagreement, difference)
    z_alpha, z_beta = stats.norm.ppf(1 - SIGNIFICANCE / 2), stats.norm.ppf(power)
    return math.ceil((z_alpha * math.sqrt(psi) + z_beta * math.sqrt(psi - difference**2)) ** 2 / difference**2)


def judge(first: Right, second: Right, *, of: Literal["models", "ways"] = "ways", relevant: float = RELEVANT, seed: int = 0) -> Verdict:
    """Say which side is better, or why that cannot be said.

    Args:
        of: "models": these very weights are compared, and the images decide. "ways": each side is one run or several of a way to make a
            model (an architecture, a recipe); with a single run it cannot be known whether the way made the difference or luck.
        relevant: a difference worth knowing. Where none is found, "no difference" is said only if one as large as this would have been
            found with a power of 80 %, and the interval that the seeds leave is not wider than ± it.
    """
    difference = paired_difference(first, second, seed=seed)
    needed = {value: images_needed(difference.disagreement, value) for value in sorted({0.01, 0.02, relevant})}
    return Verdict(_decide(difference, of, needed[relevant], relevant), difference, needed)


def _decide(difference: Difference, of: Literal["models", "ways"], needed: int, relevant: float) -> Decision:
    low, high = difference.interval
    one_seed = of == "ways" and min(difference.num_seeds) == 1
    if (low > 0 or high < 0) and difference.p < SIGNIFICANCE:
        return "cannot know: one seed" if one_seed else "first" if difference.value > 0 else "second"
    if difference.num_images < needed:
        return "too few images"
    if one_seed:
        return "cannot know: one seed"
    wide = of == "ways" and (high - low) / 2 > relevant
    return "cannot know: seeds differ" if wide else "no difference"


def _resampled_mean(by_image: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return means (R,) over images drawn with replacement: to draw how often each value occurs is to draw the images."""
    values, counts = np.unique(by_image, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(by_image), counts / len(by_image), size=resamples)
    return drawn @ values / len(by_image)


def _seed_term(sides: list[Right], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return what other seeds would add to the difference (R,); nothing where no side has two."""
    accuracies = [side.mean(axis=1) for side in sides]
    freedom = sum(len(side) - 1 for side in accuracies)
    if not freedom:
        return np.zeros(resamples)
    variance = sum(((side - side.mean()) ** 2).sum() for side in accuracies) / freedom
    scale = math.sqrt(variance * sum(1 / len(side) for side in accuracies))
    return scale * np.random.default_rng([seed, 1]).standard_t(freedom, size=resamples)


def _share_beyond_zero(draws: NDArray[np.float64]) -> float:
    """Return the two-sided p of a bootstrap distribution: twice the share on the far side of 0, never below what R draws can tell."""
    tail = min((draws <= 0).mean(), (draws >= 0).mean())
    return float(min(1.0, max(2 * tail, 2 / len(draws))))
