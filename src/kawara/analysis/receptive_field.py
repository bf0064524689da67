"""Which pixels a place in the middle of a layer really depends on: the effective receptive field.

Luo et al., arXiv 1701.04128; for ViTs Raghu et al., arXiv 2108.08810: |∂(centre of the feature map)/∂pixel|, averaged over
channels and images. Taken after the residual connection it has a sharp peak at the centre, which the skip path carries; taken before,
on the branch alone, attention loses that peak.

Differs from the paper, which does not say how channels are averaged: they are summed with signs ±1 drawn for every image, one backward
pass instead of D, and what does not cancel is averaged. Plain sums would look in the one direction that LayerNorm takes out of the stream.

Axes: B batch, C channels, H W pixels, D width, h w grid, S layers.
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
from kawara.analysis.places import Layout, as_map, depths, skip_places, token_layout
from kawara.errors import DataError
from kawara.layers import taps
from kawara.models import ImageModel

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class ReceptiveFields:
    """The effective receptive field of the centre of several layers."""

    places: tuple[str, ...]
    gradient: Floats
    """(S, H, W) float64: each sums to 1."""
    centre_px: Floats
    """(S, 2): (y, x) of the middle of the cell asked about."""
    num_images: int

    @property
    def mean_distance_px(self) -> Floats:
        """(S,): the mean distance of the pixels from the centre, each by its share of the gradient."""
        y, x = self._offsets_px()
        return (self.gradient * np.hypot(y, x)).sum(axis=(1, 2))

    def share_within(self, radius_px: float) -> Floats:
        """Return (S,): the share of the gradient on pixels at most `radius_px` away from the centre in both directions."""
        y, x = self._offsets_px()
        return (self.gradient * ((np.abs(y) <= radius_px) & (np.abs(x) <= radius_px))).sum(axis=(1, 2))

    def _offsets_px(self) -> tuple[Floats, Floats]:
        """Return how far each pixel is below (S, H, 1) and to the right (S, 1, W) of the centre."""
        height, width = self.gradient.shape[1:]
        y = np.arange(height) + 0.5 - self.centre_px[:, :1]
        x = np.arange(width) + 0.5 - self.centre_px[:, 1:]
        return y[:, :, None], x[:, None, :]


def branches(model: ImageModel, blocks: Sequence[str]) -> list[str]:
    """Return the place before the residual in each of the blocks: its first branch, in a transformer block the attention."""
    skips = skip_places(model)
    return [next(f"{skip}:input1" for skip in skips if skip.startswith(f"{block}.")) for block in blocks]


def receptive_fields(
    model: ImageModel, batches: Iterable[Tensor], *, places: Sequence[str] | None = None, seed: int = 0
) -> ReceptiveFields:
    """Measure how the centre of each layer depends on the pixels.

    The centre is cell (⌊h/2⌋, ⌊w/2⌋). One forward pass a batch, and for each place a backward pass down to the pixels.

    Args:
        batches: normalised images (B, C, H, W) of one size; 32 images are usual.
        places: layers; None is `depths(model)`. `branches(model, blocks)` gives the same depths before the residual.
        seed: of the signs of the channels.
    """
    places = tuple(depths(model) if places is None else places)
    generator = torch.Generator().manual_seed(seed)
    total: Tensor | float = 0.0
    centre_px: Floats | None = None
    num_images = 0
    for image in batches:
        gradient, centre_px = _gradients(model, image, places, token_layout(model, image), generator)
        total = total + gradient
        num_images += len(image)
    if centre_px is None:
        raise DataError("There are no images to measure receptive fields on.")
    gradient = torch.as_tensor(total)
    return ReceptiveFields(places, (gradient / gradient.sum(dim=(1, 2), keepdim=True)).numpy(), centre_px, num_images)


def _gradients(
    model: ImageModel, image: Tensor, places: Sequence[str], layout: Layout, generator: torch.Generator
) -> tuple[Tensor, Floats]:
    """Return |∂/∂pixel| summed over images and the channels of the pixels, (S, H, W) float64, and where the centres lie, (S, 2) px."""
    image = image.detach().requires_grad_()
    with torch.enable_grad(), evaluating(model), taps.read(model, *places, detach=False) as found:
        model.features(image)
    gradients, centres_px = [], []
    for place in places:
        maps = as_map(found[place], layout)
        h, w = maps.shape[2:]
        centre = maps[:, :, h // 2, w // 2]  # (B, D)
        signs = torch.randint(0, 2, centre.shape, generator=generator).mul(2).sub(1).to(centre)
        (gradient,) = torch.autograd.grad((centre * signs).sum(), image, retain_graph=True)
        gradients.append(gradient.abs().sum(dim=(0, 1)).cpu().double())
        centres_px.append(((h // 2 + 0.5) * image.shape[2] / h, (w // 2 + 0.5) * image.shape[3] / w))
    return torch.stack(gradients), np.array(centres_px)
