"""The judgement, on answers that are known."""

from __future__ import annotations

import numpy as np
import pytest

from kawara.edge.certificate import Comparison, judge, noise_images, time_in_turn

LABELS = np.arange(200) % 4


def answers(right: int) -> np.ndarray:
    """Probabilities (200, 4) that are right for the first `right` images."""
    shown = np.where(np.arange(200) < right, LABELS, (LABELS + 1) % 4)
    return np.where(np.arange(4) == shown[:, None], 0.7, 0.1).astype(np.float32)


def judged(reference: np.ndarray, exported: np.ndarray, *, labels=LABELS, precision: str = "fp16", max_drop: float = 0.5) -> dict:
    return judge(Comparison(reference, exported, labels, [f"image {i}" for i in range(200)]), precision=precision, max_drop=max_drop)


def test_equal_answers_are_accepted():
    found = judged(answers(150), answers(150), precision="fp32")
    assert found["refused"] == []
    assert found["agreement"] == 1
    assert found["max_difference"] == 0
    assert found["accuracy"]["torch"]["top1"] == found["accuracy"]["export"]["top1"] == 0.75
    low, high = found["accuracy"]["export"]["top1_ci95"]
    assert 0.66 < low < 0.72 < 0.78 < high < 0.84


@pytest.mark.parametrize(("num_beyond", "refused"), [(2, False), (3, True)])
def test_rounding_may_decide_near_ties_where_tokens_are_merged(num_beyond: int, refused: bool):
    exported = answers(150)
    exported[:num_beyond, 0] += 1e-3
    comparison = Comparison(answers(150), exported, None, [f"image {i}" for i in range(200)])
    assert bool(judge(comparison, precision="fp32", max_drop=0, merges=True)["refused"]) is refused
    assert judge(comparison, precision="fp32", max_drop=0)["refused"]


def test_numbers_are_compared_with_what_was_meant_and_accuracy_with_what_was_given():
    comparison = Comparison(answers(148), answers(148), LABELS, [f"image {i}" for i in range(200)], answers(150))
    found = judge(comparison, precision="fp32", max_drop=0.9)
    assert (found["agreement"], found["max_difference"]) == (1, 0)
    assert found["accuracy"]["torch"]["top1"] == 0.75
    assert found["accuracy"]["drop_points"] == 1
    assert found["refused"]


@pytest.mark.parametrize(("right", "refused"), [(149, False), (148, True)])
def test_accuracy_may_fall_as_far_as_is_allowed(right: int, refused: bool):
    found = judged(answers(150), answers(right))
    assert found["accuracy"]["drop_points"] == pytest.approx((150 - right) / 2)
    assert found["agreement"] == pytest.approx(1 - (150 - right) / 200)
    assert bool(found["refused"]) is refused


def test_a_difference_is_named_with_its_image_and_refused_in_fp32_only():
    exported = answers(150)
    exported[17, 0] += 2e-4
    found = judged(answers(150), exported, precision="fp32", labels=None)
    assert found["worst_image"] == "image 17"
    assert found["max_difference"] == pytest.approx(2e-4, rel=1e-3)
    assert "differs by 2.0e-04" in found["refused"][0]
    assert found["accuracy"] is None
    assert judged(answers(150), exported)["refused"] == []


def test_what_is_no_number_is_refused():
    exported = answers(150)
    exported[3] = np.nan
    found = judged(answers(150), exported)
    assert "no number" in found["refused"][0]
    assert found["max_difference"] is None
    assert found["worst_image"] == "image 3"


def test_both_are_timed_alike():
    calls = []
    image = noise_images(1, (5, 9), count=1)[0]
    asked = {name: lambda _, name=name: calls.append(name) for name in ("torch", "export")}
    latency = time_in_turn(image, asked)
    assert calls == ["torch", "export"] * 33
    assert 0 <= latency["export"]["p50_ms"] <= latency["export"]["p95_ms"]
    assert latency["image_size"] == list(image.shape[:2])
