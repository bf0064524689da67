"""Few-shot evaluation: what a linear classifier makes of frozen features, given a few images of each class. Nothing is trained.

ViT (arXiv 2010.11929, §4.1) fits ridge regression from the features to targets in {−1, +1}^K, in closed form; the largest answer names the
class. The details are those of the authors' evaluator (big_vision, `evaluators/fewshot_lsr.py`):

    x ← (x − μ) / (σ + 1e-5)          μ, σ: mean and deviation of each feature over the support images
    x ← [x, 100]                      a constant feature so large that its weight, the bias, is hardly held back
    W = (XᵀX + λI)⁻¹ XᵀY              λ = 2¹⁰; where n < d, the same as Xᵀ(XXᵀ + λI)⁻¹Y, with a smaller matrix

Differs from the evaluator: float64; one λ, hence one linear system in place of an eigendecomposition; the draws are ours.

Axes: n support images, m queries, D width, d = D + 1 with the constant feature, K classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kawara.data.cache import ProgressCallback
from kawara.errors import DataError

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

SHOTS = (1, 5, 10, 25)
NUM_DRAWS = 3
L2 = 2.0**10
BIAS_FEATURE = 100.0
_STD_EPS = 1e-5
_QUERY_BLOCK = 4_096


@dataclass(frozen=True)
class RidgeClassifier:
    """A linear classifier on standardised features: `mean` and `std` (D,), `weights` (d, K) with the bias in the last row."""

    mean: Floats
    std: Floats
    weights: Floats

    def predict(self, features: Floats) -> Ints:
        """Return the class (m,) of features (m, D)."""
        blocks = (features[start : start + _QUERY_BLOCK] for start in range(0, len(features), _QUERY_BLOCK))
        return np.concatenate([(standardised(block, self.mean, self.std) @ self.weights).argmax(axis=1) for block in blocks])


@dataclass(frozen=True)
class FewShotAccuracy:
    """Accuracies with `shots` images of each class, one for each draw of the images."""

    shots: int
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def std(self) -> float:
        """The sample standard deviation over the draws; 0 for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def primal_weights(x: Floats, y: Floats, l2: float) -> Floats:
    """Return (XᵀX + λI)⁻¹ XᵀY, (d, K), for x (n, d) and y (n, K)."""
    return np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)


def dual_weights(x: Floats, y: Floats, l2: float) -> Floats:
    """Return Xᵀ(XXᵀ + λI)⁻¹Y, (d, K), for x (n, d) and y (n, K)."""
    return x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(x.shape[0]), y)


def standardised(features: Floats, mean: Floats, std: Floats) -> Floats:
    """Return x (m, d) float64 for features (m, D): standardised, with the constant feature at the end."""
    scaled = (np.asarray(features, dtype=np.float64) - mean) / std
    return np.pad(scaled, ((0, 0), (0, 1)), constant_values=BIAS_FEATURE)


def ridge_classifier(features: Floats, labels: Ints, num_classes: int, *, l2: float = L2) -> RidgeClassifier:
    """Fit the classifier to support features (n, D) and labels (n,) in [0, K)."""
    features = np.asarray(features, dtype=np.float64)
    mean, std = features.mean(axis=0), features.std(axis=0) + _STD_EPS
    x, y = standardised(features, mean, std), np.full((len(labels), num_classes), -1.0)
    y[np.arange(len(labels)), labels] = 1.0
    solve = primal_weights if x.shape[0] >= x.shape[1] else dual_weights
    return RidgeClassifier(mean, std, solve(x, y, l2))


def rarest_class(labels: Ints) -> tuple[int, int]:
    """Return the class with the fewest images among those that have any, and their number: the most shots there can be."""
    classes, counts = np.unique(labels, return_counts=True)
    rarest = int(counts.argmin())
    return int(classes[rarest]), int(counts[rarest])


def draw_shots(labels: Ints, shots: int, seed: int, draw: int = 0) -> Ints:
    """Return the positions of `shots` images of each class that has any, drawn without replacement.

    The draw of a class depends on (seed, draw, class) and on its own images alone, and fewer shots are the beginning of more. Raises
    DataError where a class has too few.
    """
    rarest, most = rarest_class(labels)
    if shots > most:
        raise DataError(f"The class number {rarest} has too few images for {shots} shots.", got=most, remedy=f"at most {most} shots")
    classes, counts = np.unique(labels, return_counts=True)
    members = np.split(np.argsort(labels, kind="stable"), counts.cumsum()[:-1])
    orders = (np.random.default_rng([seed, draw, int(k)]).permutation(own) for k, own in zip(classes, members))
    return np.concatenate([order[:shots] for order in orders])


def fewshot_accuracy(
    support: Floats,
    support_labels: Ints,
    queries: Floats,
    query_labels: Ints,
    *,
    num_classes: int,
    shots: Sequence[int] = SHOTS,
    draws: int = NUM_DRAWS,
    seed: int = 0,
    l2: float = L2,
    progress: ProgressCallback | None = None,
) -> list[FewShotAccuracy]:
    """Return the accuracies on all queries (m, D) of classifiers fitted to a few support images of each class, for each number of shots.

    Args:
        support: (n, D), from which the shots are drawn.
        draws: how often.
        progress: called with (fits done, fits in all, "").

    Raises:
        DataError: a class has fewer images than the shots.
    """
    results = []
    for number, count in enumerate(shots):
        values = []
        for draw in range(draws):
            chosen = draw_shots(support_labels, count, seed, draw)
            classifier = ridge_classifier(support[chosen], support_labels[chosen], num_classes, l2=l2)
            values.append(float((classifier.predict(queries) == query_labels).mean()))
            if progress is not None:
                progress(number * draws + draw + 1, len(shots) * draws, "")
        results.append(FewShotAccuracy(count, tuple(values)))
    return results
