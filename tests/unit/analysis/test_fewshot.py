"""The closed-form classifier against normal equations solved by hand, against scikit-learn, and against itself from the other side."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from kawara.analysis.fewshot import (
    draw_shots,
    dual_weights,
    fewshot_accuracy,
    primal_weights,
    rarest_class,
    ridge_classifier,
    standardised,
)
from kawara.errors import DataError


def made_up(n: int, width: int, classes: int, seed: int = 0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return clouds around one centre a class, every feature with a scale and place of its own."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.random.default_rng(99).normal(size=(classes, width))
    features = (centres[labels] + spread * draw.normal(size=(n, width))) * np.arange(1, width + 1) + 3
    return features.astype(np.float32), labels


def solved_by_hand(features: np.ndarray, labels: np.ndarray, num_classes: int) -> list[list[float]]:
    """Return W of (XᵀX + 1024 I) W = XᵀY by loops and Gauss–Jordan elimination, from the features alone."""
    n, width = features.shape
    rows = [[float(value) for value in row] for row in features]
    for j in range(width):
        column = [row[j] for row in rows]
        mean = sum(column) / n
        std = math.sqrt(sum((value - mean) ** 2 for value in column) / n)
        for row in rows:
            row[j] = (row[j] - mean) / (std + 1e-5)
    rows = [[*row, 100.0] for row in rows]
    size = width + 1
    system = [[sum(row[i] * row[j] for row in rows) + (1024.0 if i == j else 0.0) for j in range(size)] for i in range(size)]
    for i in range(size):
        system[i] += [sum(row[i] * (1.0 if label == k else -1.0) for row, label in zip(rows, labels)) for k in range(num_classes)]
    for i in range(size):
        system[i] = [value / system[i][i] for value in system[i]]
        for other in range(size):
            if other != i:
                factor = system[other][i]
                system[other] = [value - factor * pivot for value, pivot in zip(system[other], system[i])]
    return [row[size:] for row in system]


@pytest.mark.parametrize("n", [4, 8, 9, 40])  # d = 9: both sides of n = d
def test_the_weights_solve_the_normal_equations(n):
    features, labels = made_up(n, 8, 3)
    classifier = ridge_classifier(features, labels, 3)
    assert classifier.weights.dtype == np.float64
    np.testing.assert_allclose(classifier.weights, solved_by_hand(features, labels, 3), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("n", [5, 30])
def test_the_weights_are_those_of_scikit_learn(n):
    features, labels = made_up(n, 12, 3)
    classifier = ridge_classifier(features, labels, 3)
    x = standardised(features, classifier.mean, classifier.std)
    targets = np.where(np.eye(3)[labels] == 1, 1.0, -1.0)
    np.testing.assert_allclose(classifier.weights.T, Ridge(alpha=1024.0, fit_intercept=False).fit(x, targets).coef_, rtol=1e-7, atol=1e-12)
    # With a free intercept in place of the constant feature the slopes are the same, and the bias is larger by (10⁴ n + λ) / (10⁴ n).
    free = Ridge(alpha=1024.0).fit(x[:, :-1], targets)
    np.testing.assert_allclose(classifier.weights[:-1].T, free.coef_, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(100 * classifier.weights[-1], free.intercept_ * 1e4 * n / (1e4 * n + 1024), rtol=1e-7)


@pytest.mark.parametrize("shape", [(3, 20), (20, 20), (60, 20)])
def test_primal_and_dual_are_one(shape):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=shape), draw.normal(size=(shape[0], 4))
    for l2 in (0.1, 1024.0):
        np.testing.assert_allclose(primal_weights(x, y, l2), dual_weights(x, y, l2), rtol=1e-8, atol=1e-13)


def test_order_scale_and_place_of_the_support_do_not_matter():
    features, labels = made_up(20, 6, 3)
    queries, _ = made_up(5_000, 6, 3, seed=1)  # more than one block
    classifier = ridge_classifier(features, labels, 3)
    expected = standardised(queries, classifier.mean, classifier.std) @ classifier.weights
    np.testing.assert_array_equal(classifier.predict(queries), expected.argmax(axis=1))
    order = np.random.default_rng(2).permutation(20)
    np.testing.assert_allclose(ridge_classifier(features[order], labels[order], 3).weights, classifier.weights, rtol=1e-9)
    scale, place = np.array([0.5, 1, 2, 4, 8, 16]), np.arange(6) - 2.0
    other = ridge_classifier(features * scale + place, labels, 3)
    np.testing.assert_allclose(standardised(queries * scale + place, other.mean, other.std) @ other.weights, expected, atol=1e-4)
    renamed = np.array([2, 0, 1])
    np.testing.assert_allclose(ridge_classifier(features, renamed[labels], 3).weights[:, renamed], classifier.weights, rtol=1e-9)


def test_a_feature_that_never_moves_and_a_class_that_never_comes_do_no_harm():
    features, labels = made_up(20, 6, 3)
    features[:, 2] = 7.0
    classifier = ridge_classifier(features, labels, 5)
    assert np.isfinite(classifier.weights).all()
    assert np.abs(classifier.weights[2]).max() == 0
    assert set(classifier.predict(features)) <= {0, 1, 2}


def test_draws_take_as_many_of_each_class_and_fewer_are_the_beginning_of_more():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [10, 30, 12]))  # class 2 has no images
    few, many = draw_shots(labels, 4, seed=5), draw_shots(labels, 10, seed=5)
    for drawn, shots in ((few, 4), (many, 10)):
        assert len(set(drawn.tolist())) == 3 * shots
        assert np.bincount(labels[drawn], minlength=4).tolist() == [shots, shots, 0, shots]
    assert few.reshape(3, 4).tolist() == many.reshape(3, 10)[:, :4].tolist()
    assert draw_shots(labels, 4, seed=5).tolist() == few.tolist()
    others = [draw_shots(labels, 4, seed=6), draw_shots(labels, 4, seed=5, draw=1)]
    assert len({tuple(drawn.tolist()) for drawn in (few, *others)}) == 3
    alone = np.flatnonzero(labels == 1)
    assert alone[draw_shots(labels[alone], 4, seed=5)].tolist() == few.reshape(3, 4)[1].tolist()


def test_too_many_shots_are_refused():
    labels = np.repeat([0, 1, 2], [9, 4, 6])
    assert rarest_class(labels) == (1, 4)
    assert len(draw_shots(labels, 4, seed=0)) == 12
    with pytest.raises(DataError, match="class number 1 has too few images for 5 shots"):
        draw_shots(labels, 5, seed=0)


def test_accuracy_grows_with_the_shots_from_chance_to_certainty():
    support, queries = made_up(400, 16, 4, spread=0.8), made_up(1_000, 16, 4, seed=1, spread=0.8)
    results = fewshot_accuracy(*support, *queries, num_classes=4, shots=(1, 5, 25, 100))
    means = [result.mean for result in results]
    assert [len(result.values) for result in results] == [3] * 4
    assert means == sorted(means)
    assert means[0] < 0.85 < 0.95 < means[-1]
    assert results[0].std == pytest.approx(np.std(results[0].values, ddof=1))
    assert fewshot_accuracy(*support, *queries, num_classes=4, shots=(5,)) == [results[1]]
    assert fewshot_accuracy(*support, *queries, num_classes=4, shots=(5,), seed=1) != [results[1]]
    noise = np.random.default_rng(3).integers(0, 4, 400)
    guess = fewshot_accuracy(support[0], noise, *queries, num_classes=4, shots=(25,), draws=1)[0]
    assert guess.mean == pytest.approx(0.25, abs=0.15)
    assert guess.std == 0
