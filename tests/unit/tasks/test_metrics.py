from __future__ import annotations

import numpy as np
import pytest
import torch

from kawara.tasks.classification import soft_target_cross_entropy
from kawara.tasks.metrics import accuracy_interval, classification_metrics, confusion_matrix, per_class


def made_up(n: int = 400, k: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(n, k)) * 2
    labels = draw.integers(0, k, n)
    logits[np.arange(n), labels] += 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), labels


def test_metrics_equal_a_plain_loop():
    probabilities, labels = made_up()
    metrics = classification_metrics(probabilities, labels, resamples=10)
    right, in_top5, nll = [], [], []
    for row, label in zip(probabilities.astype(np.float64), labels):
        order = sorted(range(len(row)), key=lambda k: -row[k])
        right.append(order[0] == label)
        in_top5.append(label in order[:5])
        nll.append(-np.log(row[label]))
    assert metrics["top1"] == pytest.approx(np.mean(right))
    assert metrics["top5"] == pytest.approx(np.mean(in_top5))
    assert metrics["nll"] == pytest.approx(np.mean(nll), rel=1e-6)
    recalls = [np.mean([r for r, label in zip(right, labels) if label == k]) for k in range(7)]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    ece = 0.0
    confidence = probabilities.max(axis=1)
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            ece += inside.mean() * abs(np.mean(np.array(right)[inside]) - confidence[inside].mean())
    assert metrics["ece"] == pytest.approx(ece, abs=1e-6)


def test_the_interval_is_that_of_a_proportion():
    probabilities, labels = made_up(n=2000)
    metrics = classification_metrics(probabilities, labels)
    p = metrics["top1"]
    low, high = metrics["top1_ci95"]
    half = 1.96 * (p * (1 - p) / 2000) ** 0.5
    assert low == pytest.approx(p - half, abs=0.006)
    assert high == pytest.approx(p + half, abs=0.006)


def test_the_interval_of_an_accuracy_alone_is_that_of_the_metrics():
    probabilities, labels = made_up(n=2000)
    right = probabilities.argmax(axis=1) == labels
    metrics = classification_metrics(probabilities, labels)
    assert accuracy_interval(right) == pytest.approx(metrics["top1_ci95"], abs=0.003)
    assert accuracy_interval(np.ones(50, dtype=bool)) == [1.0, 1.0]


def test_the_interval_covers_the_truth_in_about_95_of_100_samples():
    covered = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        right = draw.random(300) < 0.8
        probabilities = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
        low, high = classification_metrics(probabilities, np.zeros(300, dtype=int), resamples=300, seed=seed)["top1_ci95"]
        covered += low <= 0.8 <= high
    assert 88 <= covered <= 100


def test_a_class_without_images_does_not_count():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]])
    metrics = classification_metrics(probabilities, np.array([0, 0]))
    assert metrics["balanced_accuracy"] == 0.5
    rows = per_class(confusion_matrix(np.array([0, 1]), np.array([0, 0]), 3), ("a", "b", "c"))
    assert rows[0] == {"class": "a", "num_images": 2, "recall": 0.5, "precision": 1.0, "mostly_confused_with": "b"}
    assert rows[1]["recall"] is None
    assert rows[1]["precision"] == 0.0
    assert rows[2]["precision"] is None


def test_confusion_counts_true_rows_and_called_columns():
    matrix = confusion_matrix(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_soft_target_loss_equals_smoothed_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 5, dtype=torch.float64), torch.randint(0, 5, (8,))
    targets = torch.full((8, 5), 0.1 / 5, dtype=torch.float64)
    targets[torch.arange(8), labels] += 0.9
    expected = 0.9 * torch.nn.functional.cross_entropy(logits, labels) + 0.1 * -logits.log_softmax(-1).mean()
    torch.testing.assert_close(soft_target_cross_entropy(logits, targets).double(), expected, atol=1e-6, rtol=1e-6)
