"""A model and its whole preprocessing in one graph: raw pixels (B, H, W, C) of uint8 in, probabilities (B, K) out.

The graph computes what `Preprocessing.place_batch`, `normalise`, the model and a softmax compute, with batch, height and width free. The
resize is that of torch on uint8 (fixed-point weights, as Pillow made common), written as two matrix products:

    t[i, j] = (j + ½ − (i + ½) in/out) · min(1, out/in)          from output i to input j; exact in integers up to the division
    a[i, j] = f(t[i, j]) / Σ_j f(t[i, j])                        f: cubic convolution with a = −½, or the triangle
    w[i, j] = round(2^p a[i, j])                                 p ≤ 22 the largest for which the largest w is below 2¹⁵
    y[i]    = clamp(⌊(Σ_j w[i, j] x[j] + 2^(p−1)) / 2^p⌋)        to 0…255; along rows first, then along columns

A float32 product of such numbers is not exact, so w = 128 · high + low is multiplied in two parts: |Σ high x| and |Σ low x| stay below
2²⁴, every partial sum is a whole number that float32 holds, and no order of summation, thread count or run time can change the result.
The weights themselves are computed to 40 bits out of float32, because OpenVINO, the web and phones have no float64: with 24 bits, one
weight in a hundred is rounded the other way. Only what the centre crop keeps is computed, in tiles: the input of a tile of outputs is a
window, cut out by gathering.

Axes: B batch, H W source pixels, C channels, T outputs of a tile along one side, S inputs of its window, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kawara.data.preprocessing import Interpolation, Preprocessing
from kawara.edge.double_float import DoubleFloat, exactly, normalised, quotient, two_product, two_sum

_TILE = 32
_MAX_BITS = 22
_SPLIT = 128
_RADIUS = {"bicubic": 2, "bilinear": 1}


class ServingGraph(nn.Module):
    """What is exported: images (B, H, W, C) of uint8 in the colour mode of the model to probabilities (B, K) in float32."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing):
        super().__init__()
        self.model = model
        self.place = PlaceInGraph(preprocessing)
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).reshape(1, -1, 1, 1))
        self.register_buffer("shift", (-mean / std).reshape(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        placed = self.place(image)
        return self.model(placed * self.scale + self.shift).float().softmax(dim=-1)


class PlaceInGraph(nn.Module):
    """`Preprocessing.place_batch` as a graph: (B, H, W, C) of uint8 to whole numbers 0 to 255 in float32 (B, C, h, w)."""

    def __init__(self, preprocessing: Preprocessing):
        super().__init__()
        self.preprocessing = preprocessing
        self.powers: Tensor
        self.register_buffer("powers", 2.0 ** torch.arange(_MAX_BITS + 1, dtype=torch.float32))

    def forward(self, image_u8: Tensor) -> Tensor:
        _, height, width, _ = image_u8.shape
        wanted = self.preprocessing.image_size
        resized = self.preprocessing.resized_size(height, width)
        if self.preprocessing.resize == "crop":  # both sides are reduced alike: half the operators where they go together
            rows, columns = self._passes([height, width], resized, wanted)
        else:
            (rows,), (columns,) = (self._passes(*([size] for size in side)) for side in zip((height, width), resized, wanted))
        # Rows are gathered as they lie, columns when they lie like rows: run times copy long blocks fast, single pixels slowly.
        windows = image_u8.index_select(1, rows.inputs.flatten()).flatten(2).transpose(1, 2)  # (B, W C, rows S)
        windows = windows.unflatten(1, (width, -1)).index_select(1, columns.inputs.flatten()).flatten(2)
        tiles = columns.rounded(windows.unflatten(1, columns.inputs.shape).float())  # (B, columns, T, C rows S)
        tiles = tiles.flatten(1, 2).transpose(1, 2).unflatten(1, (-1, *rows.inputs.shape))  # (B, C, rows, S, columns T)
        placed = rows.rounded(tiles).flatten(2, 3)
        return placed[..., : wanted[0], : wanted[1]]

    def _passes(self, num_inputs: Sequence[Any], num_outputs: Sequence[Any], wanted: Sequence[int]) -> list[_Pass]:
        """Make the weights along sides that are reduced alike: of the outputs of each, the `wanted` in the middle are kept."""
        sides = list(zip(num_inputs, num_outputs))
        tile = -(-max(wanted) // -(-max(wanted) // _TILE))
        num_tiles = -(-max(wanted) // tile)
        half = _largest(_reach(*side, self.preprocessing.interpolation) for side in sides)
        window = _largest((tile - 1) * inputs // outputs + 2 * half + 2 for inputs, outputs in sides)
        inputs, outputs = _per_side(num_inputs), _per_side(num_outputs)  # (sides, 1, 1, 1)
        step = torch.arange(-half, half + 1)[:, None]
        unit = self._unit(torch.arange(_largest(num_outputs)).minimum(outputs - 1), step, inputs, outputs)
        # The first output that is kept, rounded half to even as Python rounds: (n + (n mod 4 == 3)) // 2 is round(n / 2) for n ≥ 0.
        margin = outputs - _per_side(wanted)
        kept = (margin + margin % 4 // 3) // 2 + torch.arange(num_tiles * tile).reshape(num_tiles, 1, tile)
        kept = kept.minimum(outputs - 1)  # what fills up the last tile must be something, though it is cut off
        middle = _centre(kept, inputs, outputs)  # (sides, tiles, 1, T)
        first = middle[..., :1] - half
        # Computed only for the inputs that an output reaches, 2 half + 1 of them, and then put where they stand in the window.
        reached = middle + step  # (sides, tiles, 2 half + 1, T)
        shares = self._weights(_distance(kept, reached, inputs, outputs), 2 * inputs.maximum(outputs), _exist(reached, inputs))
        weights = torch.floor(shares.high * unit + 0.5)
        rest = (shares.high * unit - weights) + shares.low * unit
        weights = weights + (rest > 0.5).float() - (rest < -0.5).float()
        high = torch.floor(weights / _SPLIT + 0.5)
        parts = torch.cat([high, weights - _SPLIT * high], dim=-1).transpose(-1, -2)  # (sides, tiles, 2 T, 2 half + 1)
        places = (reached - first).repeat(1, 1, 1, 2).transpose(-1, -2)
        parts = torch.zeros(len(sides), num_tiles, 2 * tile, window).scatter(3, places, parts)
        seen = (first.squeeze(-1) + torch.arange(window)).clamp(min=0).minimum(inputs.squeeze(-1) - 1)  # (sides, tiles, S)
        used = [-(-size // tile) for size in wanted]
        return [_Pass(seen[side, :tiles], parts[side, :tiles], unit[side].flatten()) for side, tiles in enumerate(used)]

    def _unit(self, every: Tensor, step: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return 2^p (sides, 1, 1, 1), by all outputs, kept or not: at the borders, where windows are cut, weights are largest."""
        near = _centre(every, inputs, outputs) + step  # (sides, 1, 2 half + 1, outputs)
        shares = self._kernel(_distance(every, near, inputs, outputs) / (2 * inputs.maximum(outputs)))
        shares = torch.where(_exist(near, inputs), shares, 0.0)
        largest = (shares / shares.sum(dim=2, keepdim=True)).amax(dim=(2, 3), keepdim=True)
        bits = (torch.floor(largest * self.powers[1:] + 0.5) < 2**15).sum(dim=-1)
        return self.powers[bits][..., None]

    def _kernel(self, t: Tensor) -> Tensor:
        """Return f(|t|) times 1 or 2 in float32: enough to find p."""
        if self.preprocessing.interpolation == "bilinear":
            return torch.relu(1 - t)
        return (1 - t) * torch.where(t < 1, (2 - 3 * t) * t + 2, torch.relu(2 - t).square())

    def _weights(self, distance: Tensor, diameter: Tensor, exist: Tensor) -> DoubleFloat:
        """Return a[i, j] for |t| = distance / diameter, zero where there is no input; they sum to 1 along dimension 2.

        With d for the distance and D for the diameter, whole numbers, the cubic is a product of whole numbers:

            2 D³ f(d / D) = (D − d) · (2 D² + d (2 D − 3 d))        d ≤ D
                          = (D − d) · (2 D − d)²                    D ≤ d ≤ 2 D
        """
        # Powers of two bring D to ½ … 1, and change no digit. Factors fall out where the weights are made to sum to 1.
        shrunk = 1 / self.powers[(diameter > self.powers).sum(dim=-1, keepdim=True)]
        d, whole = distance.float() * shrunk, diameter.float() * shrunk
        if self.preprocessing.interpolation == "bilinear":
            values = exactly(torch.relu(whole - d))
        else:
            inside, left = d < whole, torch.relu(2 * whole - d)
            square, error = two_product(torch.where(inside, d, left), torch.where(inside, 2 * whole - 3 * d, left))
            constant, lacking = two_product(whole, whole)
            total, rounding = two_sum(torch.where(inside, 2 * constant, 0.0), square)
            values = exactly(whole - d).times(DoubleFloat(total, rounding + error + torch.where(inside, 2 * lacking, 0.0)))
        # Cut so that the sum of the high parts is exact (for reductions up to 500-fold); the low parts need no care.
        coarse = torch.floor(values.high * 2**14 + 0.5) / 2**14
        values = DoubleFloat(torch.where(exist, coarse, 0.0), torch.where(exist, (values.high - coarse) + values.low, 0.0))
        return quotient(values, normalised(values.high.sum(dim=2, keepdim=True), values.low.sum(dim=2, keepdim=True)))


@dataclass(frozen=True)
class _Pass:
    """A resize along one side, cut into tiles."""

    inputs: Tensor
    """(tiles, S): which inputs stand in the window of each tile."""
    weights: Tensor
    """(tiles, 2 T, S): the high parts of the weights, then the low ones."""
    unit: Tensor
    """(1,): 2^p."""

    def rounded(self, windows: Tensor) -> Tensor:
        """Return grey levels (B, ..., tiles, T, n) of grey levels (B, ..., tiles, S, n), in float32.

        ⌊(128 high + low + 2^(p−1)) / 2^p⌋ = ⌊(high + ⌊low / 128⌋) / 2^(p−7) + ½⌋, whose parts float32 holds (p is 13 or more).
        """
        high, low = (self.weights @ windows).chunk(2, dim=-2)
        share = _SPLIT / self.unit  # powers of two: products with them are exact
        return torch.floor((high + torch.floor(low * (1 / _SPLIT))) * share + 0.5).clamp(0, 255)


def _reach(num_inputs: Any, num_outputs: Any, interpolation: Interpolation) -> Any:
    """Return how many inputs on each side of the middle one a filter can reach: ⌈radius · max(1, in/out)⌉."""
    return (_RADIUS[interpolation] * torch.sym_max(num_inputs, num_outputs) + num_outputs - 1) // num_outputs


def _largest(numbers: Iterable[Any]) -> Any:
    """Return the largest of some sizes, which may be symbols."""
    return functools.reduce(torch.sym_max, numbers)


def _per_side(sizes: Sequence[Any]) -> Tensor:
    """Return sizes, which may be symbols, as whole numbers (sides, 1, 1, 1)."""
    return torch.stack([torch.full((1, 1, 1), size) for size in sizes])


def _distance(outputs: Tensor, inputs: Tensor, num_inputs: Tensor, num_outputs: Tensor) -> Tensor:
    """Return |t[i, j]| · 2 max(in, out), a whole number."""
    return torch.abs(2 * num_outputs * inputs + num_outputs - num_inputs * (2 * outputs + 1))


def _centre(outputs: Tensor, num_inputs: Tensor, num_outputs: Tensor) -> Tensor:
    """Return the input in which the centre of each output lies."""
    return (2 * outputs + 1) * num_inputs // (2 * num_outputs)


def _exist(inputs: Tensor, num_inputs: Tensor) -> Tensor:
    return (inputs >= 0) & (inputs < num_inputs)
