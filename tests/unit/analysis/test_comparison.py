"""Intervals that cover, a test that agrees with the binomial written out, and verdicts that know what they cannot know."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kawara.analysis.comparison import accuracy_with_seeds, images_needed, judge, mcnemar, paired_difference
from kawara.errors import ConfigError


def sides(draw: np.random.Generator, n: int, seeds: int, advantage: float = 0.0, seed_deviation: float = 0.0) -> tuple[np.ndarray, ...]:
    """Two sides of S runs (S, n): answers depend on the image, on the side and the image together, on the run, and on chance."""
    easiness = draw.normal(2.2, 2.0, n)

    def side(shift: float) -> np.ndarray:
        by_image = easiness + shift + draw.normal(0, 0.5, n)
        return by_image + draw.normal(0, seed_deviation, (seeds, 1)) + draw.normal(0, 0.6, (seeds, n)) > 0

    return side(advantage), side(0.0)


def test_mcnemar_equals_the_binomial_written_out():
    first = np.array([True] * 9 + [False] * 2 + [True] * 30)
    second = np.array([False] * 9 + [True] * 2 + [True] * 30)
    found = mcnemar(first, second)
    probabilities = [math.comb(11, k) / 2**11 for k in range(12)]
    assert (found.only_first, found.only_second) == (9, 2)
    assert found.p == pytest.approx(2 * sum(probabilities[:2]) + probabilities[2])
    assert mcnemar(second, first).p == pytest.approx(found.p)
    assert mcnemar(first, first).p == 1.0


def test_the_interval_is_that_of_resampled_images():
    draw = np.random.default_rng(0)
    first, second = (side[0] for side in sides(draw, 400, 1))
    slow = []
    for _ in range(4000):
        chosen = draw.integers(0, 400, 400)
        slow.append(first[chosen].mean() - second[chosen].mean())
    found = paired_difference(first, second)
    assert found.value == pytest.approx(first.mean() - second.mean())
    np.testing.assert_allclose(found.interval, np.percentile(slow, [2.5, 97.5]), atol=0.004)
    assert found.disagreement == pytest.approx((first != second).mean())


@pytest.mark.parametrize(("seeds", "least", "most"), [(1, 0.92, 0.98), (3, 0.94, 1.0)])
def test_the_interval_covers_no_difference_in_95_of_100(seeds, least, most):
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        low, high = paired_difference(*sides(draw, 1000, seeds, seed_deviation=0.1 * (seeds > 1)), resamples=1000).interval
        covered += low <= 0 <= high
    assert least <= covered / 400 <= most


def test_a_model_against_its_copy_shows_no_difference():
    draw = np.random.default_rng(2)
    right = draw.random(1000) < 0.9
    assert judge(right, right, of="models").decision == "no difference"
    again = [right[draw.integers(0, 1000, 1000)] for _ in range(100)]
    assert all(judge(each, each, of="models").decision == "no difference" for each in again)
    retrained = [judge(*sides(draw, 4000, 1), of="models").decision for _ in range(100)]
    assert retrained.count("no difference") >= 91  # each errs with a chance of 1 in 20: 91 of 100 or more with a chance of 97 %


@pytest.mark.parametrize("seeds", [1, 3])
def test_two_points_on_nine_thousand_images_are_found(seeds):
    draw = np.random.default_rng(3)
    decisions = []
    for _ in range(20):
        first, second = sides(draw, 9000, seeds, advantage=0.23, seed_deviation=0.02 * (seeds > 1))
        decisions.append(judge(first, second, of="models" if seeds == 1 else "ways").decision)
        assert judge(second, first, of="models" if seeds == 1 else "ways").decision in ("second", "no difference")
    assert 0.01 < first.mean() - second.mean() < 0.03
    assert decisions.count("first") >= 19


def test_one_seed_cannot_know():
    first, second = sides(np.random.default_rng(4), 9000, 1, advantage=0.5)
    assert judge(first, second, of="models").decision == "first"
    assert judge(first, second).decision == "cannot know: one seed"
    assert judge(first, first).decision == "cannot know: one seed"


def test_seeds_that_differ_widely_hide_what_the_images_would_show():
    draw = np.random.default_rng(5)
    verdict = judge(*sides(draw, 4000, 2, seed_deviation=0.5))
    assert verdict.decision == "cannot know: seeds differ"
    low, high = verdict.difference.interval
    assert high - low > 0.1


def test_too_few_images_say_how_many_are_needed():
    verdict = judge(*sides(np.random.default_rng(6), 60, 3))
    assert verdict.decision == "too few images"
    assert verdict.images_needed[0.02] > 60
    assert verdict.images_needed[0.01] > 3 * verdict.images_needed[0.02]
    assert verdict.to_dict()["images_needed"]["0.02"] == verdict.images_needed[0.02]


def test_the_number_of_images_gives_the_power_that_it_promises():
    draw = np.random.default_rng(7)
    disagreement, difference = 0.08, 0.02
    n = images_needed(disagreement, difference)
    only_first = (disagreement + difference) / 2
    found = 0
    for _ in range(400):
        kind = draw.random(n)
        first, second = kind < 0.8 + only_first, (kind < 0.8) | ((kind >= 0.8 + only_first) & (kind < 0.8 + disagreement))
        found += mcnemar(first, second).p < 0.05
    assert 0.74 < found / 400 < 0.86
    assert images_needed(0.0, 0.01) == 300


def test_the_accuracy_of_several_seeds_is_less_sure_than_that_of_one():
    first, _ = sides(np.random.default_rng(8), 2000, 3, seed_deviation=0.3)
    value, (low, high) = accuracy_with_seeds(first)
    assert value == pytest.approx(first.mean())
    one_low, one_high = accuracy_with_seeds(first[0])[1]
    assert high - low > one_high - one_low
    assert accuracy_with_seeds(np.ones(50, bool)) == (1.0, (1.0, 1.0))


def test_other_images_are_refused():
    with pytest.raises(ConfigError, match="same images"):
        paired_difference(np.ones(10, bool), np.ones(11, bool))
