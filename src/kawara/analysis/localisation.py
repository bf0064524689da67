"""Does a token still know where it came from? CKA between the tokens of a layer and the pixels of every patch.

Raghu et al., arXiv 2108.08810, fig. 9: over many images, the token at one place of the grid is compared with the pixels at each
place. Where location is kept, a token resembles the pixels at its own place most, and the resemblance falls off with distance; where it
is lost (in a CNN's last map, in a ViT with mean pooling) it spreads out. Prefix tokens have no place; their rows say which pixels they
resemble.

Differs from the paper: unbiased minibatch CKA (see `similarity`), so that places which share nothing come out at 0.

Axes: C channels, H W pixels, h w grid, R prefix tokens, N = R + h·w, B batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kawara.analysis.evaluation_mode import evaluating
from kawara.analysis.places import Layout, as_tokens, depths, layout_of, token_layout
from kawara.analysis.similarity import MinibatchCKA, grams_of_tokens
from kawara.errors import DataError
from kawara.layers import taps
from kawara.models import ImageModel

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Localisation:
    """CKA of the tokens of one layer with the pixels at every place of the grid."""

    cka: Floats
    """(N, h, w) float64: the token, prefix first, then the place of the pixels."""
    num_prefix: int
    layer: str
    num_images: int

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.cka.shape[1], self.cka.shape[2]

    @property
    def tokens(self) -> Floats:
        """(h, w, h, w): the tokens of the grid without the prefix."""
        return self.cka[self.num_prefix :].reshape(*self.grid, *self.grid)

    @property
    def share_at_home(self) -> float:
        """The share of tokens that resemble the pixels at their own place most; 1 / (h·w) by chance."""
        num_places = self.grid[0] * self.grid[1]
        return float((self.tokens.reshape(num_places, -1).argmax(axis=1) == np.arange(num_places)).mean())

    def by_distance(self) -> tuple[Floats, Floats]:
        """Return the distances between token and pixels in cells, rounded (k,), and the mean CKA at each (k,)."""
        row, column = np.divmod(np.arange(self.grid[0] * self.grid[1]), self.grid[1])
        distance = np.hypot(np.subtract.outer(row, row), np.subtract.outer(column, column)).round().astype(int).ravel()
        sums = np.bincount(distance, self.tokens.ravel())
        count = np.bincount(distance)
        return np.flatnonzero(count).astype(np.float64), sums[count > 0] / count[count > 0]


@torch.no_grad()
def localisation(model: ImageModel, batches: Iterable[Tensor], *, layers: Sequence[str] | None = None) -> list[Localisation]:
    """Compare every token of each layer with the pixels at every place of the grid of that layer.

    A single token says little: below some hundred images, in batches of at least four, noise hides where it belongs. Memory: for a layer
    of h·w cells 2·h·w Gram matrices of n² numbers, n the images of a batch.

    Args:
        batches: normalised images (B, C, H, W) of one size.
        layers: places; None is `depths(model)`.

    Raises:
        ConfigError: a layer whose activations have no grid.
        DataError: no batch of at least four images.
    """
    layers = tuple(depths(model) if layers is None else layers)
    sums = [MinibatchCKA() for _ in layers]
    layouts: list[Layout] = []
    for image in batches:
        layout = token_layout(model, image)
        with evaluating(model), taps.read(model, *layers) as found:
            model.features(image)
        layouts = [layout_of(found[layer], layout) for layer in layers]
        pixels = {each.grid: grams_of_tokens(image_patches(image, each.grid)) for each in layouts}
        for layer, each, into in zip(layers, layouts, sums):
            into.add(grams_of_tokens(as_tokens(found[layer])), pixels[each.grid])
    if not layouts:
        raise DataError("There are no images to compare tokens on.")
    return [
        Localisation(each.matrix().reshape(-1, *layout.grid), layout.num_prefix, layer, each.num_images)
        for layer, layout, each in zip(layers, layouts, sums)
    ]


def image_patches(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cut (B, C, H, W) into the cells of a grid: (B, h·w, C·(H/h)·(W/w)), row by row. What is over at the right and below is left out."""
    height_px, width_px = image.shape[-2] // grid[0], image.shape[-1] // grid[1]
    cut = image[..., : grid[0] * height_px, : grid[1] * width_px]
    cells = cut.unflatten(3, (grid[1], width_px)).unflatten(2, (grid[0], height_px))  # (B, C, h, p, w, q)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
