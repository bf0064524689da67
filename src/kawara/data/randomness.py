"""Random numbers that depend on what they are for, never on when or where they are drawn.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): a bijection of a 128-bit counter
under a 64-bit key. The key is a digest of (seed, stream); the counter is (block, index, epoch). The value for
(seed, epoch, index, stream, position) is therefore the same in any batch, in any order, in any process and after any restart.

Each block of four 32-bit words gives four uniform numbers with 32 bits each, which is finer than any use here needs.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_NUM_ROUNDS = 10


def philox(counter: npt.NDArray[np.uint64], key: tuple[int, int]) -> npt.NDArray[np.uint64]:
    """Return the Philox4x32-10 image of each counter.

    `counter` is (4, …) and holds 32-bit words in uint64, least significant first; so does the result. `key` is two 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0)
        c2 = (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1)
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3))


@lru_cache(maxsize=1024)
def _key(seed: int, stream: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _words(seed: int, epoch: int, indices: Indices, stream: str, num_blocks: int) -> npt.NDArray[np.uint64]:
    """(n, 4·num_blocks) 32-bit words."""
    indices = np.asarray(indices, dtype=np.int64)
    assert indices.ndim == 1, f"indices are (n,), got {indices.shape}"
    assert 0 <= epoch < 2**32, f"an epoch is a 32-bit number, got {epoch}"
    wide = indices.astype(np.uint64)[:, None]
    shape = (len(indices), num_blocks)
    counter = np.empty((4, *shape), dtype=np.uint64)
    counter[0] = np.arange(num_blocks, dtype=np.uint64)
    counter[1] = wide & _LOW
    counter[2] = wide >> _SHIFT
    counter[3] = np.uint64(epoch)
    words = philox(counter, _key(seed, stream))
    return np.ascontiguousarray(words.transpose(1, 2, 0)).reshape(shape[0], 4 * num_blocks)


def uniform(seed: int, epoch: int, indices: Indices, stream: str, count: int) -> Floats:
    """Draw (n, count) numbers in [0, 1): row i belongs to (seed, epoch, indices[i], stream) alone.

    The first numbers of a row do not change when `count` grows.
    """
    words = _words(seed, epoch, indices, stream, -(-count // 4))[:, :count]
    return words * 2.0**-32


def uniform_block(seed: int, epoch: int, index: int, stream: str, block: int) -> tuple[float, float, float, float]:
    """Return numbers 4·block … 4·block+3 of one row of `uniform`: for a single image this is ten times cheaper than an array."""
    c0, c1, c2, c3 = block, index & 0xFFFFFFFF, (index >> 32) & 0xFFFFFFFF, epoch
    k0, k1 = _key(seed, stream)
    for _ in range(_NUM_ROUNDS):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = (product1 >> 32) ^ c1 ^ k0, (product0 >> 32) ^ c3 ^ k1
        c1, c3 = product1 & 0xFFFFFFFF, product0 & 0xFFFFFFFF
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0 * 2.0**-32, c1 * 2.0**-32, c2 * 2.0**-32, c3 * 2.0**-32


def normal(seed: int, epoch: int, indices: Indices, stream: str, count: int) -> Floats:
    """Draw (n, count) standard normal numbers as `uniform` does, by the Box–Muller transform of pairs."""
    num_pairs = -(-count // 2)
    pairs = uniform(seed, epoch, indices, stream, 2 * num_pairs).reshape(len(indices), num_pairs, 2)
    radius = np.sqrt(-2.0 * np.log1p(-pairs[..., 0]))  # 1 − u is in (0, 1]: the logarithm is finite
    angle = 2.0 * np.pi * pairs[..., 1]
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1).reshape(len(indices), 2 * num_pairs)[:, :count]


def permutation(seed: int, epoch: int, n: int, stream: str = "permutation") -> Indices:
    """Return a random order of 0 … n−1 that depends on (seed, epoch, n, stream) only."""
    words = _words(seed, epoch, np.arange((n + 1) // 2, dtype=np.int64), stream, 1)
    keys = ((words[:, 0::2] << _SHIFT) | words[:, 1::2]).reshape(-1)[:n]
    return np.argsort(keys, kind="stable").astype(np.int64)
