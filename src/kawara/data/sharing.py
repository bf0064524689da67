"""Which rows of a batch each of several processes works on.

Mixup and CutMix put image i together with image B−1−i (`mixing`). Dealt out are therefore pairs: of the P = ⌈B/2⌉ pairs (i, B−1−i), process
r of N takes those from ⌊rP/N⌋ to ⌊(r+1)P/N⌋. Its rows, in the order of the batch, are reversed as the batch is, so that mixing them
alone gives what mixing the whole batch gives. Shares differ by at most one pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Share:
    """The part of every batch that belongs to process `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def rows(self, batch_size: int) -> npt.NDArray[np.int64]:
        """Return the rows of a batch that belong to this process, ascending, never none: of a batch with fewer than 2·size − 1 rows,
        several processes get the same ones.
        """
        num_pairs = (batch_size + 1) // 2
        first = self.rank * num_pairs // self.size
        firsts = np.arange(first, max((self.rank + 1) * num_pairs // self.size, first + 1), dtype=np.int64)
        return np.unique(np.concatenate((firsts, batch_size - 1 - firsts)))


WHOLE = Share()
