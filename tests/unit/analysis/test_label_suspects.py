"""Wrong labels that were planted are found, first, with the right suggestion; right ones are left alone."""

from __future__ import annotations

import numpy as np

from kawara.analysis.label_suspects import _suspects, find_label_suspects


def blobs(seed: int = 0, per_class: int = 60):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, 16))
    labels = np.repeat(np.arange(4), per_class)
    return centres[labels] + 0.35 * rng.normal(size=(len(labels), 16)), labels


def test_planted_wrong_labels_come_first_with_the_right_suggestion():
    features, labels = blobs()
    wrong = np.random.default_rng(1).choice(len(labels), 12, replace=False)
    given = labels.copy()
    given[wrong] = (labels[wrong] + 1) % 4
    found = find_label_suspects(features, given)
    assert set(found.positions[:12].tolist()) == set(wrong.tolist())
    assert (found.suggested[:12] == labels[found.positions[:12]]).all()
    assert (np.diff(found.margins) >= 0).all()


def test_right_labels_are_left_alone():
    features, labels = blobs(2)
    assert len(find_label_suspects(features, labels).positions) <= 2


def test_the_rule_against_one_worked_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9], [0.75, 0.25]])
    labels = np.array([3, 3, 3, 8, 8, 8])  # t_3 = 0.6, t_8 = (0.6 + 0.9 + 0.25) / 3 = 0.583
    found = _suspects(probabilities, labels, np.arange(10, 16))
    assert found.positions.tolist() == [12, 15]
    assert found.suggested.tolist() == [8, 3]
    np.testing.assert_allclose(found.margins, [-0.6, -0.5])


def test_classes_of_one_image_take_no_part():
    features, labels = blobs(3)
    labels = np.concatenate([labels, [9]])
    found = find_label_suspects(np.concatenate([features, features[:1]]), labels)
    assert 240 not in found.positions
    assert len(find_label_suspects(features[:3], np.array([0, 1, 2])).positions) == 0
