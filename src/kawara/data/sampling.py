"""Which images an epoch shows, in which order: seeded, without state, the same after any restart.

Plain: a permutation. Repeated augmentation (Hoffer et al., arXiv 1901.09335; the sampler of DeiT on one process): the permutation with
every index `repeats` times in a row, of which an epoch keeps the first floor(n / 256) · 256 (all n where there are fewer than 256); so
it covers about 1/repeats of the images. Balanced: every class equally often, to within one image: classes larger than n / K show a
random part, smaller ones begin anew.

A *draw* is the number from which an image's augmentation is drawn: its index at its first showing in an epoch, index + k·n at its k-th
repetition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kawara.data.randomness import permutation
from kawara.errors import ConfigError

Indices = npt.NDArray[np.int64]

# Epochs of repeated augmentation are whole multiples of this, as in DeiT.
ROUND_TO = 256


@dataclass(frozen=True)
class SamplerConfig:
    """How often an epoch shows an image in a row (`repeats`), and whether it shows every class equally often."""

    repeats: int = 1
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ConfigError("sampler.repeats must be at least 1.", got=self.repeats)


def epoch_size(num_items: int, config: SamplerConfig) -> int:
    """Return how many showings an epoch has."""
    if config.repeats == 1 or num_items < ROUND_TO:
        return num_items
    return num_items // ROUND_TO * ROUND_TO


def epoch_order(num_items: int, labels: Indices | None, epoch: int, seed: int, config: SamplerConfig) -> tuple[Indices, Indices]:
    """Return the indices that the epoch shows and their draws, both int64 (epoch_size,).

    `labels` (num_items,) are needed for balanced sampling only.
    """
    if config.balanced:
        if labels is None or len(labels) != num_items:
            raise ConfigError("Balanced sampling needs the label of every image.")
        indices, showings = _balanced(labels, epoch, seed)
    else:
        indices = permutation(seed, epoch, num_items)
        showings = np.zeros(num_items, dtype=np.int64)
    if config.repeats > 1:
        size = epoch_size(num_items, config)
        showings = (showings[:, None] * config.repeats + np.arange(config.repeats)).reshape(-1)[:size]
        indices = np.repeat(indices, config.repeats)[:size]
    return indices, indices + showings * num_items


def _balanced(labels: Indices, epoch: int, seed: int) -> tuple[Indices, Indices]:
    """Return (indices, showing number of each), n of both, classes mixed at random."""
    num_items = len(labels)
    classes = np.unique(labels)
    shuffled = permutation(seed, epoch, num_items, "sampling.within")
    share, left_over = divmod(num_items, len(classes))
    gets_one_more = np.zeros(len(classes), dtype=bool)
    gets_one_more[permutation(seed, epoch, len(classes), "sampling.classes")[:left_over]] = True
    indices, showings = [], []
    for position, label in enumerate(classes):
        members = shuffled[labels[shuffled] == label]
        turns = np.arange(share + int(gets_one_more[position]))
        indices.append(members[turns % len(members)])
        showings.append(turns // len(members))
    order = permutation(seed, epoch, num_items, "sampling.order")
    return np.concatenate(indices)[order], np.concatenate(showings)[order].astype(np.int64)
