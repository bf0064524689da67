"""Positions against formulas written out in loops."""

import math
from typing import get_args

import pytest
import torch

from kawara.errors import ConfigError, UnknownNameError
from kawara.layers.position import PositionResize, resize_positions, sincos_positions


def keys_kernel(x: float, a: float) -> float:
    """The cubic convolution kernel of Keys (1981)."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def weights_1d(method: str, old: int, new: int) -> torch.Tensor:
    """The (new, old) matrix of one axis, entry by entry."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        if method == "bicubic-antialias":
            scale = old / new
            stretch = max(scale, 1.0)
            centre = (i + 0.5) * scale
            row = [keys_kernel((j + 0.5 - centre) / stretch, -0.5) for j in range(old)]
            for j in range(old):
                matrix[i, j] = row[j] / sum(row)
            continue
        if method.endswith("corners"):
            source = i * (old - 1) / (new - 1)
        elif method == "dinov2-offset":
            source = (i + 0.5) * old / (new + 0.1) - 0.5
        else:
            source = (i + 0.5) * old / new - 0.5
        first = math.floor(source)
        for j in range(first - 1, first + 3):
            weight = keys_kernel(source - j, -0.75) if "bilinear" not in method else max(0.0, 1 - abs(source - j))
            matrix[i, min(max(j, 0), old - 1)] += weight
    return matrix


@pytest.mark.parametrize("method", get_args(PositionResize))
@pytest.mark.parametrize("new", [(7, 9), (3, 4), (4, 11), (14, 14)])
def test_resizing_equals_its_formula(method: PositionResize, new: tuple[int, int]) -> None:
    torch.manual_seed(0)
    old = (6, 5)
    table = torch.randn(1, 30, 8)
    resized = resize_positions(table, old, new, method=method)
    maps = table.double().reshape(6, 5, 8)
    expected = torch.einsum("ij,kl,jld->ikd", weights_1d(method, old[0], new[0]), weights_1d(method, old[1], new[1]), maps)
    torch.testing.assert_close(resized.double(), expected.reshape(1, -1, 8), rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", get_args(PositionResize))
def test_the_same_grid_returns_the_same_tensor(method: PositionResize) -> None:
    table = torch.randn(1, 1 + 12, 8)
    assert resize_positions(table, (3, 4), (3, 4), num_prefix=1, method=method) is table


def test_prefix_entries_stay_and_a_constant_table_stays_constant() -> None:
    table = torch.cat([torch.randn(1, 2, 8), torch.full((1, 12, 8), 3.0)], dim=1)
    for method in get_args(PositionResize):
        resized = resize_positions(table, (3, 4), (5, 7), num_prefix=2, method=method)
        assert resized.shape == (1, 2 + 35, 8)
        assert torch.equal(resized[:, :2], table[:, :2])
        torch.testing.assert_close(resized[:, 2:], torch.full((1, 35, 8), 3.0), rtol=0, atol=1e-5)


def test_half_precision_tables_keep_their_type() -> None:
    assert resize_positions(torch.randn(1, 9, 8).bfloat16(), (3, 3), (4, 4)).dtype == torch.bfloat16


def test_a_table_that_does_not_fit_and_a_method_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="10 entries"):
        resize_positions(torch.randn(1, 10, 8), (3, 3), (4, 4))
    with pytest.raises(UnknownNameError, match="bicubic"):
        resize_positions(torch.randn(1, 9, 8), (3, 3), (4, 4), method="bicubik")  # type: ignore[arg-type]


def test_sincos_entry_by_entry() -> None:
    table = sincos_positions((2, 3), 8)
    assert table.shape == (1, 6, 8)
    for row in range(2):
        for column in range(3):
            expected = [
                function(place * 10_000 ** -(k / 2)) for place in (column, row) for function in (math.sin, math.cos) for k in (0, 1)
            ]
            torch.testing.assert_close(table[0, row * 3 + column], torch.tensor(expected))


def test_sincos_needs_a_multiple_of_four() -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        sincos_positions((2, 2), 6)


@pytest.mark.parametrize("method", get_args(PositionResize))
@pytest.mark.parametrize(("patch", "side"), [(16, 14), (14, 37), (8, 28)])
def test_every_multiple_of_the_patch_up_to_1024_px(method: PositionResize, patch: int, side: int) -> None:
    """A table of one value stays that value at every size: rows and columns are never missing, nor do weights miss their sum of 1."""
    table = torch.full((1, 1 + side**2, 1), 0.75)
    cells = range(-(-32 // patch), 1024 // patch + 1)
    for rows, columns in zip(cells, reversed(cells)):
        resized = resize_positions(table, (side, side), (rows, columns), num_prefix=1, method=method)
        assert resized.shape == (1, 1 + rows * columns, 1)
        assert (resized - 0.75).abs().max() < 1e-5
    for cell in cells:
        assert resize_positions(table, (side, side), (cell, cell), num_prefix=1, method=method).shape == (1, 1 + cell**2, 1)
