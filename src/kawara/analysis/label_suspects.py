"""Find images whose label is probably wrong, from what a frozen backbone makes of them.

Confident learning (Northcutt et al., 1911.00068, §3): logistic regression on the features, each image judged by the folds that it is not
in, gives probabilities p. With the mean probability that images of class j get for their own label as the threshold

    t_j = mean of p_ij over the images i labelled j,

an image is a suspect when another class reaches its threshold and is the likeliest among those that do. Suspects are ranked by the margin
p(label) − p(suggested), the most certain first.

Differs from the paper: nothing is removed, and no noise matrix is estimated; a person looks at the list.

Axes: n images, D width, K classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

Floats = npt.NDArray[np.floating]
NUM_FOLDS = 5


@dataclass(frozen=True)
class LabelSuspects:
    """Images (m,) by position, with the class (m,) that they look like and the margin (m,) in [−1, 0]; the most certain first."""

    positions: npt.NDArray[np.int64]
    suggested: npt.NDArray[np.int64]
    margins: npt.NDArray[np.float64]


def find_label_suspects(features: Floats, labels: npt.NDArray[np.int64], *, seed: int = 0) -> LabelSuspects:
    """Return the suspects among images with features (n, D) and labels (n,); classes of fewer than two images take no part."""
    classes, counts = np.unique(labels, return_counts=True)
    judged = np.flatnonzero(np.isin(labels, classes[counts >= 2]))
    if len(np.unique(labels[judged])) < 2:
        empty = np.zeros(0, np.int64)
        return LabelSuspects(empty, empty, np.zeros(0))
    probabilities = out_of_fold_probabilities(features[judged], labels[judged], seed=seed)
    return _suspects(probabilities, labels[judged], judged)


def out_of_fold_probabilities(features: Floats, labels: npt.NDArray[np.int64], *, seed: int) -> npt.NDArray[np.float64]:
    """Return (n, K): for each image what logistic regression on the other folds says of the K classes present, in ascending order."""
    directions = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    folds = StratifiedKFold(int(min(NUM_FOLDS, np.bincount(labels)[np.unique(labels)].min())), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a ranking does not need the last digit
        found = cross_val_predict(LogisticRegression(max_iter=200), directions, labels, cv=folds, method="predict_proba")
    return np.asarray(found, np.float64)


def _suspects(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> LabelSuspects:
    classes, own = np.unique(labels, return_inverse=True)
    thresholds = np.array([probabilities[own == column, column].mean() for column in range(len(classes))])
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    suggested = reached.argmax(axis=1)
    rows = np.flatnonzero((reached.max(axis=1) > 0) & (suggested != own))
    margins = probabilities[rows, own[rows]] - probabilities[rows, suggested[rows]]
    order = np.argsort(margins, kind="stable")
    order = order[margins[order] < 0]
    return LabelSuspects(positions[rows[order]], classes[suggested[rows[order]]], margins[order])
