"""Twice the digits of float32, against float64."""

from __future__ import annotations

import torch

from kawara.edge.double_float import DoubleFloat, exactly, quotient, two_product, two_sum


def wide(number: DoubleFloat) -> torch.Tensor:
    return number.high.double() + number.low.double()


def drawn(count: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, generator=draw), torch.randn(count, generator=draw)


def test_sums_and_products_lack_nothing():
    a, b = drawn()
    total, error = two_sum(a, b)
    assert torch.equal(total.double() + error.double(), a.double() + b.double())
    product, error = two_product(a, b)
    assert torch.equal(product.double() + error.double(), a.double() * b.double())


def test_a_chain_of_operations_keeps_40_bits():
    draw = torch.Generator().manual_seed(1)
    n, d = torch.randint(1, 20_000, (2000,), generator=draw), torch.randint(1, 20_000, (2000,), generator=draw)
    t = quotient(exactly(n), exactly(d))
    x = n.double() / d.double()
    assert ((wide(t) - x) / x).abs().max() < 2**-44
    found, wanted = wide(t.times(exactly(d - n)).times(exactly(d))), (n * (d - n)).double()
    assert ((found - wanted).abs() <= 2**-42 * wanted.abs()).all()
