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

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kawara.data.preprocessing import Interpolation, Preprocessing
from kawara.edge.double_float import DoubleFloat, exactly, quotient

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
        rows = self._pass(height, resized[0], wanted[0])
        columns = self._pass(width, resized[1], wanted[1])
        # Gathered while channels lie last, then moved in two steps: each step copies blocks, which run times do fast.
        windows = image_u8.index_select(2, columns.inputs.flatten()).index_select(1, rows.inputs.flatten()).permute(0, 3, 1, 2)
        windows = windows.unflatten(3, columns.inputs.shape).unflatten(2, rows.inputs.shape)  # (B, C, rows, S, columns, S)
        tiles = windows.permute(0, 1, 2, 4, 3, 5).float()  # (B, C, rows, columns, S, S)
        tiles = columns.rounded(tiles @ columns.weights, dim=-1)  # (B, C, rows, columns, S, T)
        tiles = rows.rounded(rows.weights.transpose(-1, -2)[:, None] @ tiles, dim=-2)  # (B, C, rows, columns, T, T)
        placed = tiles.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
        return placed[..., : wanted[0], : wanted[1]]

    def _pass(self, num_inputs: Any, num_outputs: Any, wanted: int) -> _Pass:
        """Make the weights along one side: `num_outputs` of which the `wanted` in the middle are kept."""
        num_tiles = -(-wanted // _TILE)
        tile = -(-wanted // num_tiles)
        half = _reach(num_inputs, num_outputs, self.preprocessing.interpolation)
        # p comes from all outputs, kept or not: at the borders, where windows are cut, weights are largest.
        every = torch.arange(num_outputs)
        near = _centre(every, num_inputs, num_outputs)[:, None] + torch.arange(-half, half + 1)
        largest = self._largest(every[:, None], near, num_inputs, num_outputs)
        bits = (torch.floor(largest * self.powers[1:] + 0.5) < 2**15).sum()
        unit = self.powers.index_select(0, bits.reshape(1))
        # The first output that is kept, rounded half to even as Python rounds: (n + (n mod 4 == 3)) // 2 is round(n / 2) for n ≥ 0.
        margin = num_outputs - wanted
        kept = (margin + margin % 4 // 3) // 2 + torch.arange(num_tiles * tile).reshape(num_tiles, tile)
        kept = kept.minimum(torch.full((), num_outputs - 1))  # what fills up the last tile must be something, though it is cut off
        middle = _centre(kept, num_inputs, num_outputs)
        first = middle[:, :1] - half
        window = (tile - 1) * num_inputs // num_outputs + 2 * half + 2
        inputs = first + torch.arange(window)  # (tiles, S)
        # Computed only for the inputs that an output reaches, 2 half + 1 of them, and then put where they stand in the window.
        reached = middle[:, None, :] + torch.arange(-half, half + 1)[:, None]  # (tiles, 2 half + 1, T)
        shares = self._weights(kept[:, None, :], reached, num_inputs, num_outputs, dim=1)
        weights = torch.floor(shares.high * unit + 0.5)
        rest = (shares.high * unit - weights) + shares.low * unit
        weights = weights + (rest > 0.5).float() - (rest < -0.5).float()
        high = torch.floor(weights / _SPLIT + 0.5)
        parts = torch.cat([high, weights - _SPLIT * high], dim=-1)  # (tiles, 2 half + 1, 2 T)
        places = (reached - first[:, None]).repeat(1, 1, 2)
        parts = torch.zeros(num_tiles, window, 2 * tile).scatter(1, places, parts)
        return _Pass(inputs.clamp(min=0).minimum(torch.full((), num_inputs - 1)), parts, unit)

    def _largest(self, outputs: Tensor, inputs: Tensor, num_inputs: Any, num_outputs: Any) -> Tensor:
        """Return the largest a[i, j], in float32: enough to find p."""
        t = _distance(outputs, inputs, num_inputs, num_outputs).float() / (2 * torch.sym_max(num_inputs, num_outputs))
        if self.preprocessing.interpolation == "bilinear":
            values = torch.relu(1 - t)
        else:
            values = torch.where(t < 1, (1.5 * t - 2.5) * t * t + 1, torch.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0.0))
        values = torch.where((inputs >= 0) & (inputs < num_inputs), values, 0.0)
        return (values / values.sum(dim=1, keepdim=True)).amax(dim=(0, 1))

    def _weights(self, outputs: Tensor, inputs: Tensor, num_inputs: Any, num_outputs: Any, dim: int) -> DoubleFloat:
        """Return a[i, j], zero where there is no input; they sum to 1 along `dim`."""
        t = quotient(
            exactly(_distance(outputs, inputs, num_inputs, num_outputs)),
            exactly(torch.full((), 2 * torch.sym_max(num_inputs, num_outputs))),
        )
        if self.preprocessing.interpolation == "bilinear":
            pieces = [t.negated().plus(1.0)]
        else:  # twice the cubic: the factor falls out when they are made to sum to 1
            square = t.times(t)
            pieces = [square.times(t.tripled().plus(-5.0)).plus(2.0), t.negated().plus(5.0).times(t).plus(-8.0).times(t).plus(4.0)]
        exists = (inputs >= 0) & (inputs < num_inputs)
        high, low = torch.zeros_like(t.high), torch.zeros_like(t.high)
        for end, piece in reversed(list(enumerate(pieces, 1))):
            high, low = torch.where(t.high < end, piece.high, high), torch.where(t.high < end, piece.low, low)
        # Cut so that the sum of the high parts is exact (for reductions up to 500-fold); the low parts need no care.
        coarse = torch.floor(high * 2**14 + 0.5) / 2**14
        values = DoubleFloat(torch.where(exists, coarse, 0.0), torch.where(exists, (high - coarse) + low, 0.0))
        return quotient(values, DoubleFloat(values.high.sum(dim=dim, keepdim=True), values.low.sum(dim=dim, keepdim=True)))


@dataclass(frozen=True)
class _Pass:
    """A resize along one side, cut into tiles."""

    inputs: Tensor
    """(tiles, S): which inputs stand in the window of each tile."""
    weights: Tensor
    """(tiles, S, 2 T): the high parts of the weights, then the low ones."""
    unit: Tensor
    """(1,): 2^p."""

    def rounded(self, parts: Tensor, dim: int) -> Tensor:
        """Join the products with high and low parts, and round them to grey levels.

        ⌊(128 high + low + 2^(p−1)) / 2^p⌋ = ⌊(high + ⌊low / 128⌋) / 2^(p−7) + ½⌋, whose parts float32 holds (p is 13 or more).
        """
        high, low = parts.chunk(2, dim=dim)
        share = _SPLIT / self.unit  # powers of two: products with them are exact
        return torch.floor((high + torch.floor(low * (1 / _SPLIT))) * share + 0.5).clamp(0, 255)


def _reach(num_inputs: Any, num_outputs: Any, interpolation: Interpolation) -> Any:
    """Return how many inputs on each side of the middle one a filter can reach: ⌈radius · max(1, in/out)⌉."""
    return (_RADIUS[interpolation] * torch.sym_max(num_inputs, num_outputs) + num_outputs - 1) // num_outputs


def _distance(outputs: Tensor, inputs: Tensor, num_inputs: Any, num_outputs: Any) -> Tensor:
    """Return |t[i, j]| · 2 max(in, out), a whole number."""
    return torch.abs(2 * num_outputs * inputs + num_outputs - num_inputs * (2 * outputs + 1))


def _centre(outputs: Tensor, num_inputs: Any, num_outputs: Any) -> Tensor:
    """Return the input in which the centre of each output lies."""
    return (2 * outputs + 1) * num_inputs // (2 * num_outputs)
