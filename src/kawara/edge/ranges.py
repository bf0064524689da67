"""Which range of numbers 256 steps are spread over.

An activation x is stored as q = clamp(round(x / s) + z, 0, 255) and read back as s (q − z), asymmetric uint8: after GELU and ReLU nearly
all numbers are on one side of zero. Zero itself is always exact. A weight is stored symmetric, per output channel: q = round(w / s).

    min-max      [smallest, largest]: nothing is cut, one outlier makes every step coarse
    percentile   all but one number in 10,000 on each side (Integer Quantization for Deep Learning Inference, arXiv 2004.09602)
    mse          the [a, b] for which the mean of (x − x̂)² over numbers that were seen is smallest, of a grid of cuts on both sides

Axes: n numbers that were seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

RangeKind = Literal["minmax", "percentile", "mse"]

LEVELS = 255
OUTSIDE = 1e-4
"""The share of numbers that `percentile` cuts off on each side."""

_SMALLEST_STEP = 1e-8
_CUTS = torch.linspace(0.3, 1.0, 15)


class Range(NamedTuple):
    """low ≤ 0 ≤ high, and the step and the zero point that spread uint8 over it."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """s: the size of a step."""
        # A float32 number, as the graph stores it; a layer that has seen nothing but zeros keeps a step.
        return float(torch.tensor(max((self.high - self.low) / LEVELS, _SMALLEST_STEP)))

    @property
    def zero_point(self) -> int:
        """z: the level that stands for 0."""
        return min(LEVELS, max(0, round(-self.low / self.scale)))


def minmax(values: Tensor) -> Range:
    """Return the range that holds all of (n,) numbers, and zero."""
    return _with_zero(values.min(), values.max())


def percentile(values: Tensor, outside: float = OUTSIDE) -> Range:
    """Return the range that leaves the share `outside` of (n,) numbers out on each side, and holds zero."""
    ordered = values.sort().values
    cut = int(outside * len(ordered))
    return _with_zero(ordered[cut], ordered[len(ordered) - 1 - cut])


def least_error(values: Tensor) -> Range:
    """Return the range, min-max with each side cut to 0.3 … 1 of itself, that loses least of (n,) numbers in the mean square."""
    widest = minmax(values)
    lows, highs = (cuts.reshape(-1, 1) for cuts in torch.meshgrid(_CUTS * widest.low, _CUTS * widest.high, indexing="ij"))
    # Not in one go: 225 pairs of cuts, times the numbers.
    errors = torch.cat([mean_square_error(values, low, high) for low, high in zip(lows.split(64), highs.split(64))])
    best = int(errors.argmin())
    return Range(float(lows[best]), float(highs[best]))


def mean_square_error(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the mean of (x − x̂)² over (n,) numbers for each of the ranges `low` (r, 1) to `high` (r, 1)."""
    scale = ((high - low) / LEVELS).clamp(min=_SMALLEST_STEP)
    zero = (-low / scale).round()
    levels = ((values / scale).round() + zero).clamp(0, LEVELS)
    return ((levels - zero) * scale - values).square().mean(dim=1)


def weight_scales(weight: Tensor, bits: int) -> Tensor:
    """Return the step of every output channel of a weight (C', ...): the largest weight of each is 2^(bits − 1) − 1 steps."""
    return (weight.detach().flatten(1).abs().amax(dim=1) / (2 ** (bits - 1) - 1)).clamp(min=_SMALLEST_STEP)


RANGES: dict[RangeKind, Callable[[Tensor], Range]] = {"minmax": minmax, "percentile": percentile, "mse": least_error}


def _with_zero(low: Tensor, high: Tensor) -> Range:
    return Range(min(float(low), 0.0), max(float(high), 0.0))
