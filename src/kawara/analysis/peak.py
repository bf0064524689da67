"""What this machine can do at best: the fastest product of large matrices, in multiply-accumulates a second."""

from __future__ import annotations

import time

import torch

from kawara import runtime

SIDES = (512, 1024)
_REPEATS = 8


@torch.inference_mode()
def matrix_peak(threads: int = 1) -> float:
    """Return the most multiply-accumulates a second that torch reached in float32 on the CPU, for square matrices."""
    best = 0.0
    with runtime.threads(threads):
        for side in SIDES:
            first, second = torch.randn(side, side), torch.randn(side, side)
            torch.mm(first, second)
            for _ in range(_REPEATS):
                started = time.perf_counter()
                torch.mm(first, second)
                best = max(best, side**3 / (time.perf_counter() - started))
    return best
