"""What a classifier is worth, from its probabilities: accuracy, calibration, and how sure of it we are.

n images, K classes. All accuracies are fractions in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

NUM_BINS = 15
NUM_RESAMPLES = 1000


def classification_metrics(probabilities: Floats, labels: Ints, *, resamples: int = NUM_RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Return top-1, top-5, balanced accuracy, NLL and ECE, each with a 95 % percentile-bootstrap interval.

    Args:
        probabilities: (n, K), rows sum to 1.
        labels: (n,) in [0, K).
        resamples: bootstrap repetitions; the images are drawn with replacement.
    """
    num_images, num_classes = probabilities.shape
    statistics = _statistics(probabilities, labels)
    values = {name: float(measure(np.ones((1, num_images)))[0]) for name, measure in statistics.items()}

    draw = np.random.default_rng(seed)
    samples: dict[str, list[Floats]] = {name: [] for name in statistics}
    chunk = max(1, min(resamples, 20_000_000 // max(num_images, 1)))
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        weights = draw.multinomial(num_images, np.full(num_images, 1 / num_images), size=count).astype(np.float64)
        for name, measure in statistics.items():
            samples[name].append(measure(weights))

    metrics: dict[str, Any] = {"num_images": num_images, "num_classes": num_classes}
    for name, value in values.items():
        low, high = np.nanpercentile(np.concatenate(samples[name]), [2.5, 97.5])
        metrics[name] = value
        metrics[f"{name}_ci95"] = [float(low), float(high)]
    return metrics


def accuracy_interval(right: NDArray[np.bool_], *, resamples: int = NUM_RESAMPLES, seed: int = 0) -> list[float]:
    """Return the 95 % percentile-bootstrap interval [low, high] of the share of right answers (n,).

    The right answers in a resample of n images are binomial: to draw their number is to draw the images.
    """
    counts = np.random.default_rng(seed).binomial(len(right), right.mean(), size=resamples)
    low, high = np.percentile(counts / len(right), [2.5, 97.5])
    return [float(low), float(high)]


def confusion_matrix(predicted: Ints, labels: Ints, num_classes: int) -> Ints:
    """Count (K, K) images of true class (row) that were called each class (column)."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(confusion: Ints, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return images, recall, precision and the commonest confusion of every class; None where it is not defined."""
    rows = []
    for k, name in enumerate(class_names):
        right, actual, called = int(confusion[k, k]), int(confusion[k].sum()), int(confusion[:, k].sum())
        wrong = confusion[k].copy()
        wrong[k] = 0
        rows.append(
            {
                "class": name,
                "num_images": actual,
                "recall": right / actual if actual else None,
                "precision": right / called if called else None,
                "mostly_confused_with": class_names[int(wrong.argmax())] if wrong.any() else None,
            }
        )
    return rows


def _statistics(probabilities: Floats, labels: Ints) -> dict[str, Callable[[Floats], Floats]]:
    """Return functions of image weights (R, n) → (R,), one for each metric."""
    num_images, num_classes = probabilities.shape
    own = probabilities[np.arange(num_images), labels].astype(np.float64)
    rank = (probabilities > own[:, None]).sum(axis=1)
    predicted = probabilities.argmax(axis=1)
    right = (predicted == labels).astype(np.float64)
    in_top5 = (rank < 5).astype(np.float64)
    nll = -np.log(np.maximum(own, np.finfo(np.float32).tiny))
    of_class = np.eye(num_classes)[labels] if num_classes <= 1000 else None

    confidence = probabilities.max(axis=1).astype(np.float64)
    in_bin = np.eye(NUM_BINS)[np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)]
    gap = right - confidence

    def mean_of(values: Floats) -> Callable[[Floats], Floats]:
        return lambda weights: weights @ values / weights.sum(axis=1)

    def balanced(weights: Floats) -> Floats:
        if of_class is None:  # too many classes for a dense table
            count = np.stack([np.bincount(labels, w, num_classes) for w in weights])
            hits = np.stack([np.bincount(labels, w * right, num_classes) for w in weights])
        else:
            count, hits = weights @ of_class, weights @ (of_class * right[:, None])
        return np.nanmean(np.divide(hits, count, out=np.full_like(hits, np.nan), where=count > 0), axis=1)

    def calibration_error(weights: Floats) -> Floats:
        return np.abs(weights @ (in_bin * gap[:, None])).sum(axis=1) / weights.sum(axis=1)

    return {
        "top1": mean_of(right),
        "top5": mean_of(in_top5),
        "balanced_accuracy": balanced,
        "nll": mean_of(nll),
        "ece": calibration_error,
    }
