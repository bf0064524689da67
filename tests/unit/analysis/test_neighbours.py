"""Weighted k-NN against a double loop, whatever the blocks; what it cannot see, and where it is certain."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kawara.analysis.neighbours import knn_predict, nearest_neighbours, votes
from kawara.errors import ConfigError


def made_up(n: int, width: int = 5, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    return torch.from_numpy(centres[labels] + draw.normal(size=(n, width))), torch.from_numpy(labels)


def by_loops(queries, support, labels, k, num_classes, temperature=0.07):
    """Return the votes of every query: all similarities one by one, sorted, the first k counted."""
    rows = []
    for query in queries.tolist():
        near = []
        for vector, label in zip(support.tolist(), labels.tolist()):
            product = sum(a * b for a, b in zip(query, vector))
            near.append((product / math.sqrt(sum(a * a for a in query)) / math.sqrt(sum(b * b for b in vector)), label))
        row = [0.0] * num_classes
        for similarity, label in sorted(near, reverse=True)[:k]:
            row[label] += math.exp(similarity / temperature)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 7, 60])
def test_votes_equal_a_double_loop(k):
    (support, labels), (queries, _) = made_up(60), made_up(25, seed=1)
    similarity, position = nearest_neighbours(queries, support, k)
    assert (similarity.diff(dim=1) <= 0).all()
    expected = by_loops(queries, support, labels, k, 4)
    torch.testing.assert_close(votes(similarity, labels[position], 4), expected, rtol=1e-9, atol=0)
    assert torch.equal(knn_predict(queries, support, labels, num_classes=4, neighbours=[k])[k], expected.argmax(dim=1))


@pytest.mark.parametrize(("query_block", "support_block"), [(1, 1), (3, 4), (25, 7), (100, 59), (4, 100)])
def test_blocks_do_not_matter(query_block, support_block):
    (support, labels), (queries, _) = made_up(60), made_up(25, seed=1)
    neighbours = [1, 5, 20]
    whole = knn_predict(queries, support, labels, num_classes=4, neighbours=neighbours)
    seen = []
    parts = knn_predict(
        queries, support, labels, num_classes=4, neighbours=neighbours, query_block=query_block, support_block=support_block,
        progress=lambda done, total, detail: seen.append((done, total)),
    )  # fmt: skip
    assert all(torch.equal(whole[k], parts[k]) for k in neighbours)
    assert seen[-1] == (25, 25)
    similarity, position = nearest_neighbours(queries, support, 20, support_block=support_block)
    expected, order = torch.nn.functional.cosine_similarity(queries[:, None], support[None], dim=2).sort(dim=1, descending=True)
    torch.testing.assert_close(similarity, expected[:, :20], rtol=0, atol=1e-12)
    assert torch.equal(position, order[:, :20])


def test_an_image_is_its_own_nearest_neighbour():
    support, _ = made_up(500, width=32)
    labels = torch.from_numpy(np.random.default_rng(3).integers(0, 4, 500))  # that no neighbour could tell
    found = knn_predict(support.float(), support.float(), labels, num_classes=4, neighbours=[1, 50], temperature=1.0, support_block=64)
    assert torch.equal(found[1], labels)
    assert not torch.equal(found[50], labels)


def test_length_rotation_and_common_order_do_not_matter():
    (support, labels), (queries, _) = made_up(80), made_up(30, seed=1)
    expected = knn_predict(queries, support, labels, num_classes=4, neighbours=[10])[10]
    draw = np.random.default_rng(2)
    lengths = torch.from_numpy(draw.uniform(0.1, 10, (80, 1)))
    rotation = torch.linalg.qr(torch.from_numpy(draw.normal(size=(5, 5))))[0]
    order = torch.from_numpy(draw.permutation(80))
    for other_queries, other_support, other_labels in (
        (queries * 7, support * lengths, labels),
        (queries @ rotation, support @ rotation, labels),
        (queries, support[order], labels[order]),
    ):
        found = knn_predict(other_queries, other_support, other_labels, num_classes=4, neighbours=[10])[10]
        assert torch.equal(found, expected)


def test_temperature_turns_from_the_nearest_to_the_majority():
    (support, labels), (queries, _) = made_up(30), made_up(40, seed=1)
    nearest = knn_predict(queries, support, labels, num_classes=4, neighbours=[1])[1]
    assert torch.equal(knn_predict(queries, support, labels, num_classes=4, neighbours=[30], temperature=0.002)[30], nearest)
    majority = knn_predict(queries, support, labels, num_classes=4, neighbours=[30], temperature=1e6)[30]
    assert set(majority.tolist()) == {int(labels.bincount().argmax())}


def test_a_vector_of_zeros_is_not_a_number_of_none():
    support, labels = made_up(10)
    support[3], queries = 0.0, torch.zeros(2, 5, dtype=torch.float64)
    similarity, _ = nearest_neighbours(queries, support, 10)
    assert (similarity == 0).all()
    assert len(knn_predict(queries, support, labels, num_classes=4, neighbours=[3])[3]) == 2


@pytest.mark.parametrize("k", [0, 11])
def test_more_neighbours_than_images_are_refused(k):
    support, labels = made_up(10)
    with pytest.raises(ConfigError, match="neighbours"):
        knn_predict(support, support, labels, num_classes=4, neighbours=[k])
