"""Ranges of activations and steps of weights, against slow float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kawara.edge.ranges import Range, least_error, minmax, percentile, weight_scales


def skewed(count: int = 3000) -> torch.Tensor:
    """Numbers as after GELU: a short negative side, a long positive one, and one outlier."""
    values = torch.nn.functional.gelu(2 * torch.randn(count, generator=torch.Generator().manual_seed(0)))
    values[7] = 60.0
    return values


def error(values: torch.Tensor, low: float, high: float) -> float:
    """The mean square of what uint8 loses, number by number."""
    scale = (high - low) / 255
    zero = round(-low / scale)
    lost = [(scale * (min(255, max(0, round(x / scale) + zero)) - zero) - x) ** 2 for x in values.double().tolist()]
    return sum(lost) / len(lost)


def test_minmax_holds_every_number_and_zero():
    assert minmax(skewed())[1] == 60
    assert minmax(torch.tensor([3.0, 5.0])) == Range(0.0, 5.0)
    assert minmax(torch.tensor([-3.0, -1.0])) == Range(-3.0, 0.0)


def test_percentile_leaves_out_a_share_on_each_side():
    values = skewed(20_000)
    ordered = np.sort(values.double().numpy())
    assert percentile(values) == pytest.approx((ordered[2], ordered[-3]))
    assert percentile(values, outside=0.01) == pytest.approx((ordered[200], ordered[-201]))


def test_least_error_is_the_best_of_all_pairs_of_cuts():
    values = skewed(120)
    widest = minmax(values)
    cuts = np.linspace(0.3, 1, 15)
    errors = {(a, b): error(values, a * widest.low, b * widest.high) for a, b in itertools.product(cuts, cuts)}
    chosen = least_error(values)
    assert error(values, *chosen) == pytest.approx(min(errors.values()), rel=1e-3)
    clean = values[values < 50]  # one outlier of 120 is worth a coarser step, one of 120,000 is not
    many = torch.cat([clean.repeat(1000), values[7:8]])
    assert least_error(many).high < 60


def test_zero_is_exact_and_the_range_is_covered():
    for low, high in ((-0.17, 4.0), (0.0, 1.0), (-3.0, 0.0), (0.0, 0.0)):
        chosen = Range(low, high)
        assert 0 <= chosen.zero_point <= 255
        assert (0 - chosen.zero_point) * chosen.scale <= low + chosen.scale
        assert (255 - chosen.zero_point) * chosen.scale >= high - chosen.scale


def test_the_largest_weight_of_each_channel_is_the_largest_level():
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for bits, largest in ((8, 127), (7, 63)):
        levels = (weight / weight_scales(weight, bits)[:, None, None, None]).round()
        assert levels.abs().flatten(1).amax(dim=1).tolist() == [largest] * 5
