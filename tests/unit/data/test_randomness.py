from __future__ import annotations

import numpy as np
import pytest

from kawara.data.randomness import normal, permutation, philox, uniform, uniform_block, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = philox(np.array(counter, dtype=np.uint64)[:, None], (np.uint64(key[0]), np.uint64(key[1])))
    assert tuple(int(word) for word in words[0]) == expected


def test_a_row_depends_on_its_index_alone() -> None:
    indices = np.array([5, 0, 2**40, 17])
    together = uniform(3, 2, indices, "crop", 7)
    for row, index in enumerate(indices):
        assert np.array_equal(together[row], uniform(3, 2, np.array([index]), "crop", 7)[0])
    assert np.array_equal(uniform(3, 2, indices[::-1], "crop", 7), together[::-1])
    assert np.array_equal(uniform(3, 2, indices, "crop", 3), together[:, :3])


def test_a_block_is_a_piece_of_the_row() -> None:
    for index in (0, 7, 2**40 + 3):
        row = uniform(11, 5, np.array([index]), "crop", 12)[0]
        for block in range(3):
            assert uniform_block(11, 5, index, "crop", block) == tuple(row[4 * block : 4 * block + 4])


def test_streams_drawn_together_are_those_drawn_alone() -> None:
    indices = np.array([3, 1, 4])
    together = uniforms(1, 2, indices, {"flip": 1, "crop": 9, "erasing": 4})
    assert all(np.array_equal(numbers, uniform(1, 2, indices, stream, numbers.shape[1])) for stream, numbers in together.items())
    assert together["crop"].shape == (3, 9)


def test_every_part_of_the_address_matters() -> None:
    index = np.array([1])
    base = uniform(0, 0, index, "a", 4)
    others = (uniform(1, 0, index, "a", 4), uniform(0, 1, index, "a", 4), uniform(0, 0, index + 1, "a", 4), uniform(0, 0, index, "b", 4))
    assert all(not np.array_equal(base, other) for other in others)


def test_moments() -> None:
    flat = uniform(0, 0, np.arange(2000), "m", 20)
    assert flat.min() >= 0
    assert flat.max() < 1
    assert abs(flat.mean() - 0.5) < 0.01
    assert abs(flat.var() - 1 / 12) < 0.002
    bell = normal(0, 0, np.arange(2000), "m", 21)
    assert bell.shape == (2000, 21)
    assert abs(bell.mean()) < 0.02
    assert abs(bell.std() - 1) < 0.02
    assert abs(np.corrcoef(bell[:, 0], bell[:, 1])[0, 1]) < 0.08


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000])
def test_permutation(n: int) -> None:
    order = permutation(0, 3, n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, permutation(0, 3, n))
    if n > 6:
        assert not np.array_equal(order, permutation(0, 4, n))
