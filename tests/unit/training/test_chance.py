from __future__ import annotations

import math

import numpy as np
import pytest

from kawara.training.chance import Chance, chance_of_as_many, constant_loss, highest_accuracy


def binomial_tail(right: int, n: int, rate: float) -> float:
    """P(X ≥ right), term by term."""
    return math.fsum(math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(right, n + 1))


@pytest.mark.parametrize(("right", "n", "rate"), [(0, 10, 0.3), (7, 20, 0.25), (150, 400, 1 / 3), (1, 1, 0.9)])
def test_the_chance_of_as_many_is_the_sum_of_the_binomial_terms(right, n, rate):
    assert chance_of_as_many(right, n, rate) == pytest.approx(binomial_tail(right, n, rate), rel=1e-9)


@pytest.mark.parametrize(("right", "n"), [(0, 30), (17, 100), (60, 387)])
def test_at_the_highest_accuracy_as_few_right_answers_have_a_probability_of_one_in_a_hundred(right, n):
    assert 1 - binomial_tail(right + 1, n, highest_accuracy(right, n)) == pytest.approx(0.01, rel=1e-6)


def test_all_right_leaves_everything_possible():
    assert highest_accuracy(5, 5) == 1.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_no_constant_answer_costs_less_than_the_entropy_of_the_smoothed_shares(smoothing):
    """Against the mean loss over every label, for the claimed optimum and for answers around it."""
    shares = np.array([0.6, 0.3, 0.1])
    targets = (1 - smoothing) * np.eye(3) + smoothing / 3

    def mean_loss(answer: np.ndarray) -> float:
        return float(-(shares[:, None] * targets * np.log(answer)).sum())

    best = (1 - smoothing) * shares + smoothing / 3
    assert mean_loss(best) == pytest.approx(constant_loss(shares, smoothing), rel=1e-12)
    draw = np.random.default_rng(0)
    for _ in range(50):
        other = np.abs(best + draw.normal(0, 0.05, 3)).clip(1e-3)
        assert mean_loss(other / other.sum()) > constant_loss(shares, smoothing)


def test_mixing_leaves_the_loss_of_knowing_nothing_as_it_is():
    draw = np.random.default_rng(1)
    labels = draw.choice(4, size=20_000, p=[0.5, 0.2, 0.2, 0.1])
    targets = np.eye(4)[labels]
    share = draw.beta(0.8, 0.8, size=(len(labels), 1))
    mixed = share * targets + (1 - share) * targets[::-1]
    answer = targets.mean(axis=0)
    assert -(mixed * np.log(answer)).sum(axis=1).mean() == pytest.approx(constant_loss(answer), abs=0.02)


def test_chance_is_measured_on_what_the_sampler_shows():
    training, validation = np.array([0] * 8 + [1] * 2), np.array([0, 0, 0, 1])
    assert Chance.of(training, validation, 2).largest_in_training == 0.8
    balanced = Chance.of(training, validation, 2, balanced=True)
    assert (balanced.largest_in_training, balanced.largest_in_validation) == (0.5, 0.75)
    assert balanced.loss == pytest.approx(math.log(2))
