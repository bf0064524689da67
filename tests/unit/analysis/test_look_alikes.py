"""Pairs that look alike are those a plain loop finds, and none are named where nearly all do."""

from __future__ import annotations

import numpy as np
import pytest

from kawara.analysis import look_alikes
from kawara.analysis.look_alikes import find_look_alikes


def features(num_images: int = 300, num_pairs: int = 4) -> np.ndarray:
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((num_images, 32))
    for number in range(num_pairs):
        rows[100 + number] = 3 * rows[number] + 0.2 * (1 + number) * draw.standard_normal(32)
    return rows.astype(np.float32)


@pytest.mark.parametrize("chunk", [7, 2048])
def test_pairs_are_those_of_a_plain_loop(monkeypatch, chunk):
    monkeypatch.setattr(look_alikes, "_CHUNK", chunk)
    rows = features().astype(np.float64)
    wanted = {}
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            cosine = rows[i] @ rows[j] / np.sqrt(rows[i] @ rows[i] * (rows[j] @ rows[j]))
            if cosine >= 0.9:
                wanted[i, j] = cosine
    found = find_look_alikes(features())
    assert found is not None
    assert set(wanted) == {(number, 100 + number) for number in range(4)}
    assert list(zip(found.first.tolist(), found.second.tolist())) == sorted(wanted, key=lambda pair: -wanted[pair])
    np.testing.assert_allclose(found.cosine, sorted(wanted.values(), reverse=True), rtol=1e-5)


def test_where_too_many_look_alike_nothing_is_listed():
    assert find_look_alikes(features(num_pairs=40)) is None
    assert find_look_alikes(np.ones((5000, 8), np.float32)) is None


def test_few_images_may_have_pairs_and_none_is_no_error():
    found = find_look_alikes(features(num_images=105, num_pairs=3))
    assert found is not None
    assert len(found.first) == 3
    empty = find_look_alikes(np.eye(4, dtype=np.float32))
    assert empty is not None
    assert len(empty.first) == 0
