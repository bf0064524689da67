"""Random numbers that depend on what they are for, never on when or where they are drawn.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): a bijection of a 128-bit counter
under a 64-bit key. The key is a digest of (seed, stream); the counter is (block, index, epoch). The value for
(seed, epoch, index, stream, position) is therefore the same in any batch, in any order, in any process and after any restart.

Each block of four 32-bit words gives four uniform numbers with 32 bits each, which is finer than any use here needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_NUM_ROUNDS = 10


def philox(counter: Words, key: tuple[Words | np.uint64, Words | np.uint64]) -> Words:
    """Return the Philox4x32-10 image of each counter.

    `counter` is (4, …) and holds 32-bit words in uint64, least significant first; so does the result. `key` is two 32-bit words, or two
    arrays of them that broadcast with a counter word.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (product1 >> _SHIFT) ^ c1 ^ k0
        c2 = (product0 >> _SHIFT) ^ c3 ^ k1
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack((c0, c1, c2, c3), axis=-1)


@lru_cache(maxsize=1024)
def _key(seed: int, stream: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _words(seed: int, epoch: int, indices: Indices, requests: Mapping[str, int]) -> Words:
    """(n, sum of blocks, 4) 32-bit words for `requests`, which say how many blocks of each stream: one pass for all."""
    indices = np.asarray(indices, dtype=np.int64)
    assert indices.ndim == 1, f"indices are (n,), got {indices.shape}"
    assert 0 <= epoch < 2**32, f"an epoch is a 32-bit number, got {epoch}"
    keys = np.array([_key(seed, stream) for stream, num_blocks in requests.items() for _ in range(num_blocks)], dtype=np.uint64)
    keys = keys.reshape(-1, 2).T
    counter = np.empty((4, len(indices), keys.shape[1]), dtype=np.uint64)
    counter[0] = np.concatenate([np.arange(num_blocks, dtype=np.uint64) for num_blocks in requests.values()])
    wide = indices.astype(np.uint64)[:, None]
    counter[1], counter[2], counter[3] = wide & _LOW, wide >> _SHIFT, np.uint64(epoch)
    return philox(counter, (keys[0], keys[1]))


def uniform(seed: int, epoch: int, indices: Indices, stream: str, count: int) -> Floats:
    """Draw (n, count) numbers in [0, 1): row i belongs to (seed, epoch, indices[i], stream) alone.

    The first numbers of a row do not change when `count` grows.
    """
    return uniforms(seed, epoch, indices, {stream: count})[stream]


def uniforms(seed: int, epoch: int, indices: Indices, counts: Mapping[str, int]) -> dict[str, Floats]:
    """Draw what `uniform` would for each stream in `counts`, in one pass: a call costs more than its numbers."""
    blocks = {stream: -(-count // 4) for stream, count in counts.items()}
    if not blocks:
        return {}
    flat: Floats = (_words(seed, epoch, indices, blocks).astype(np.float64) * 2.0**-32).reshape(len(indices), -1)
    starts = np.cumsum([0, *(4 * num_blocks for num_blocks in blocks.values())])
    return {stream: flat[:, start : start + count] for (stream, count), start in zip(counts.items(), starts.tolist())}


def uniform_block(seed: int, epoch: int, index: int, stream: str, block: int) -> tuple[float, float, float, float]:
    """Return numbers 4·block … 4·block+3 of one row of `uniform`: for a single image this is ten times cheaper than an array."""
    c0, c1, c2, c3 = block, index & 0xFFFFFFFF, (index >> 32) & 0xFFFFFFFF, epoch
    k0, k1 = _key(seed, stream)
    for _ in range(_NUM_ROUNDS):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = (product1 >> 32) ^ c1 ^ k0, (product0 >> 32) ^ c3 ^ k1
        c1, c3 = product1 & 0xFFFFFFFF, product0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0 * 2.0**-32, c1 * 2.0**-32, c2 * 2.0**-32, c3 * 2.0**-32


def normal(seed: int, epoch: int, indices: Indices, stream: str, count: int) -> Floats:
    """Draw (n, count) standard normal numbers as `uniform` does."""
    return box_muller(uniform(seed, epoch, indices, stream, 2 * -(-count // 2)))[:, :count]


def box_muller(pairs: Floats) -> Floats:
    """Turn uniform numbers (n, 2m) into as many standard normal ones, pair by pair."""
    first, second = pairs[:, 0::2], pairs[:, 1::2]
    radius = np.sqrt(-2.0 * np.log1p(-first))  # 1 − u is in (0, 1]: the logarithm is finite
    result = np.empty(pairs.shape)
    result[:, 0::2], result[:, 1::2] = radius * np.cos(2.0 * np.pi * second), radius * np.sin(2.0 * np.pi * second)
    return result


def permutation(seed: int, epoch: int, n: int, stream: str = "permutation") -> Indices:
    """Return a random order of 0 … n−1 that depends on (seed, epoch, n, stream) only."""
    words = _words(seed, epoch, np.arange((n + 1) // 2, dtype=np.int64), {stream: 1})
    keys = ((words[..., 0::2] << _SHIFT) | words[..., 1::2]).reshape(-1)[:n]
    return np.argsort(keys, kind="stable").astype(np.int64)
