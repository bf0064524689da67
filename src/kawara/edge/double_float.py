"""Numbers of twice the digits of float32: unevaluated sums of two, for run times that know no float64.

Dekker 1971, "A floating-point technique for extending the available precision": the rounding errors of a sum and of a product are float32
numbers themselves, and can be computed. Every product in `two_product` behind the first is exact, so that it does not matter where a
compiler joins a product and a sum into one instruction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_SPLIT = 2**12 + 1


class DoubleFloat(NamedTuple):
    """high + low, where low is at most half a unit in the last place of high."""

    high: Tensor
    low: Tensor

    def times(self, other: DoubleFloat) -> DoubleFloat:
        product, error = two_product(self.high, other.high)
        return normalised(product, error + (self.high * other.low + self.low * other.high))


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return fl(a + b) and what it lacks of a + b."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return fl(a · b) and what it lacks of a · b."""
    product = a * b
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def quotient(dividend: DoubleFloat, divisor: DoubleFloat) -> DoubleFloat:
    """Divide, to about 44 bits; the divisor must be normalised."""
    high = dividend.high / divisor.high
    product, error = two_product(high, divisor.high)
    rest = ((dividend.high - product) - error + dividend.low) - high * divisor.low
    return normalised(high, rest / divisor.high)


def exactly(number: Tensor) -> DoubleFloat:
    """Return a number that float32 holds, such as a whole one up to 2²⁴, as it is."""
    high = number.float()
    return DoubleFloat(high, torch.zeros_like(high))


def normalised(high: Tensor, low: Tensor) -> DoubleFloat:
    """Return high + low, of which high has the larger magnitude, as the nearest float32 and what is left."""
    total = high + low
    return DoubleFloat(total, low - (total - high))


def _halves(number: Tensor) -> tuple[Tensor, Tensor]:
    """Cut the 24 bits of a number into two halves, whose products are exact."""
    shifted = number * _SPLIT
    high = shifted - (shifted - number)
    return high, number - high
