"""How far attention reaches, how sharp it is, and how much the heads of a block differ.

Mean attention distance (ViT, arXiv 2010.11929, fig. 7 right and fig. 11; Raghu et al., arXiv 2108.08810, fig. 3): for every patch that
asks, the distance in px to every patch that answers, weighted by A, summed over the answers and averaged over the askers and the images:

    distance = mean_q Σ_k A[q, k] · ‖p_q − p_k‖₂            p: centre of a patch in px

Rows and columns of the prefix tokens are dropped. As in the code in use (Keras "probing ViTs"; google-research/vision_transformer
issue 162) what is left of a row is **not** scaled back to 1: attention to a prefix token counts as distance 0. `renormalise=True` scales
it back, and then the number is the mean over what goes to patches alone.

    entropy      −Σ_k A log A in nats over all N tokens, averaged over the patches that ask; log N is uniform attention, 0 a single token
    agreement    Pearson correlation, along a row of A, between two heads of a block; mean over the pairs of heads and the patches that ask
    prefix       share that patches give to each prefix token (Darcet et al., arXiv 2309.16588, on registers)

Everything adds up over batches in float64; A exists a few rows at a time.

Axes: R prefix tokens, h w patch grid, N = R + h·w tokens, L attention layers, M heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kawara.analysis.observed_attention import ObservedAttention, TokenLayout, observe_attention
from kawara.errors import ConfigError, DataError
from kawara.models import ImageModel

Floats = NDArray[np.float64]

# A row whose deviation from uniform is below this share of uniform is rounding: it has no pattern that could agree with another.
_FLAT = 1e-4


@dataclass(frozen=True)
class AttentionStatistics:
    """Means over all patches that ask and all images."""

    places: tuple[str, ...]
    """L names of attention layers, in order of depth."""
    distance_px: Floats
    """(L, M)"""
    entropy_nats: Floats
    """(L, M)"""
    agreement: Floats
    """(L,) in [−1, 1]; NaN where there is one head."""
    prefix_share: Floats
    """(L, M, R) in [0, 1]."""
    layout: TokenLayout
    num_images: int
    renormalised: bool
    """Whether the distance is over the attention to patches alone."""
    deviation: float
    """How far, at worst, A V was from what the fused layers answered, as a share of the largest value."""

    @property
    def uniform_distance_px(self) -> float:
        """The distance of a head that attends to every patch alike, and to no prefix token."""
        return uniform_distance(self.layout.grid, self.layout.cell_px)


def attention_statistics(model: ImageModel, batches: Iterable[Tensor], *, renormalise: bool = False) -> AttentionStatistics:
    """Measure every attention layer on batches of normalised images (B, C, H, W), all of one size.

    Raises ConfigError for a model without attention or layers that differ in heads, DataError for no images or images of several sizes.
    """
    sums: dict[str, _Sums] = {}
    layout: TokenLayout | None = None
    num_images = 0
    for batch in batches:
        seen = observe_attention(model, batch, lambda attention: sums.setdefault(attention.place, _Sums()).add(attention, renormalise))
        if layout is not None and seen != layout:
            raise DataError("The images have several sizes.", got=f"grids {layout.grid} and {seen.grid}", allowed="one")
        layout = seen
        num_images += len(batch)
    if layout is None:
        raise DataError("There are no images to measure attention on.")
    layers = list(sums.values())
    if len({layer.distance.shape for layer in layers}) > 1:
        raise ConfigError(
            "The attention layers of this model differ in their number of heads.", got=[len(layer.distance) for layer in layers]
        )
    num_rows = num_images * layout.num_patches
    return AttentionStatistics(
        places=tuple(sums),
        distance_px=np.stack([layer.distance for layer in layers]) / num_rows,
        entropy_nats=np.stack([layer.entropy for layer in layers]) / num_rows,
        agreement=np.array([layer.agreement for layer in layers]) / num_rows,
        prefix_share=np.stack([layer.prefix for layer in layers]) / num_rows,
        layout=layout,
        num_images=num_images,
        renormalised=renormalise,
        deviation=max(layer.deviation for layer in layers),
    )


def patch_distances(grid: tuple[int, int], cell_px: tuple[float, float], queries: slice = slice(None)) -> Tensor:
    """Return the distances in px between the centres of patches, (queries, h·w) float64, row by row of the grid."""
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    centre = torch.stack([row.flatten() * cell_px[0], column.flatten() * cell_px[1]], dim=1).double()
    return torch.cdist(centre[queries], centre, compute_mode="donot_use_mm_for_euclid_dist")


def attention_distance(weights: Tensor, distances: Tensor, *, renormalise: bool = False) -> Tensor:
    """Return Σ_k A[q, k] · distance[q, k] for rows of A over the patches alone: (…, Q, h·w) and (Q, h·w) of one dtype give (…, Q) in px."""
    expected = torch.einsum("...qk,qk->...q", weights, distances)
    return expected / weights.sum(dim=-1) if renormalise else expected


def uniform_distance(grid: tuple[int, int], cell_px: tuple[float, float]) -> float:
    """Return the mean distance in px under uniform attention over a patch grid: 116.49 for 14×14 patches of 16 px."""
    num_patches = grid[0] * grid[1]
    steps = range(0, num_patches, 512)
    return sum(patch_distances(grid, cell_px, slice(start, start + 512)).sum().item() for start in steps) / num_patches**2


def head_agreement(weights: Tensor) -> Tensor:
    """Return the mean Pearson correlation between the rows of two heads: (B, M, Q, N) to (B, Q); NaN for one head.

    A row that is flat up to rounding agrees with nothing: its correlations are 0.
    """
    num_heads, num_tokens = weights.shape[1], weights.shape[-1]
    centred = weights - weights.mean(dim=-1, keepdim=True)
    norm = centred.norm(dim=-1, keepdim=True)
    unit = torch.where(norm > _FLAT * num_tokens**-0.5, centred / norm, 0.0)
    # The sum over all pairs is the square of the sum, less the squares.
    pairs = unit.sum(dim=1).square().sum(dim=-1) - unit.square().sum(dim=(1, 3))
    return pairs / (num_heads * (num_heads - 1)) if num_heads > 1 else torch.full_like(pairs, torch.nan)


class _Sums:
    """Sums over patches and images for one layer."""

    def __init__(self) -> None:
        self.distance, self.entropy, self.prefix = np.zeros(()), np.zeros(()), np.zeros(())
        self.agreement, self.deviation = 0.0, 0.0

    def add(self, attention: ObservedAttention, renormalise: bool) -> None:
        layout = attention.layout
        num_prefix = layout.num_prefix
        for rows, weights in attention.chunks(num_prefix):
            patches = slice(rows.start - num_prefix, rows.stop - num_prefix)
            distances = patch_distances(layout.grid, layout.cell_px, patches).to(weights.dtype).to(weights.device)
            distance = attention_distance(weights[..., num_prefix:], distances, renormalise=renormalise)
            self.distance = self.distance + _total(distance, (0, 2))
            self.entropy = self.entropy + _total(-torch.xlogy(weights, weights).sum(dim=-1), (0, 2))
            self.prefix = self.prefix + _total(weights[..., :num_prefix], (0, 2))
            self.agreement += float(_total(head_agreement(weights), (0, 1)))
        self.deviation = max(self.deviation, attention.deviation)


def _total(values: Tensor, axes: tuple[int, ...]) -> Floats:
    return values.cpu().double().sum(dim=axes).numpy()  # not every device has float64
