"""What a token takes from every other, block by block and head by head.

The rows of A come from `observed_attention.py`: recomputed for the asked queries alone, and verified against what the model did. What is
called "the attention map" of a ViT is the row of the class token in the last block, one for each head.

Axes: B batch, R prefix tokens, h w patch grid, N = R + h·w tokens, L attention layers asked for, M heads asked for, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kawara.analysis.observed_attention import ObservedAttention, Query, TokenLayout, default_query, observe_attention, require_attention
from kawara.errors import ConfigError
from kawara.models import ImageModel


@dataclass(frozen=True)
class AttentionMaps:
    """Verified rows of A."""

    weights: NDArray[np.float32]
    """(B, L, M, Q, N): share of its answer that a query takes from each token; the last axis sums to 1."""
    places: tuple[str, ...]
    heads: tuple[int, ...]
    queries: tuple[Query, ...]
    layout: TokenLayout
    deviation: tuple[float, ...]
    """For each place, how far A V was from the fused answer, as a share of its largest value."""

    @property
    def patches(self) -> NDArray[np.float32]:
        """(B, L, M, Q, h, w): attention to the patches; sums to 1 less what goes to the prefix."""
        return self.weights[..., self.layout.num_prefix :].reshape(*self.weights.shape[:-1], *self.layout.grid)

    @property
    def prefix(self) -> NDArray[np.float32]:
        """(B, L, M, Q, R): attention to the prefix tokens."""
        return self.weights[..., : self.layout.num_prefix]


def attention_maps(
    model: ImageModel,
    image: Tensor,
    *,
    blocks: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    queries: Sequence[Query] | None = None,
) -> AttentionMaps:
    """Return what the queries take from every token in the asked attention layers, for normalised images (B, C, H, W).

    Args:
        blocks: numbers of attention layers, negative ones from the end; None: all.
        heads: numbers of heads; None: all.
        queries: None: the class token, or "mean" in a model without one.

    Raises:
        ConfigError: a model without attention, or a block, head or query that it does not have.
        InternalError: what was recomputed is not what the model did; nothing is returned then.
    """
    known = require_attention(model)
    places = [known[index] for index in _chosen(blocks, len(known), "attention layer")]
    layers = [model.get_submodule(place) for place in places]
    head_indices = _chosen(heads, min(int(layer.heads) for layer in layers), "head")  # type: ignore[arg-type]
    found: dict[str, Tensor] = {}
    deviation: dict[str, float] = {}

    def visit(attention: ObservedAttention) -> None:
        weights = [attention.of(query) for query in asked(attention.layout)]
        found[attention.place] = torch.stack(weights, dim=2)[:, head_indices].float().cpu()
        deviation[attention.place] = attention.deviation

    def asked(layout: TokenLayout) -> tuple[Query, ...]:
        return (default_query(layout),) if queries is None else tuple(queries)

    layout = observe_attention(model, image, visit, places)
    return AttentionMaps(
        weights=torch.stack([found[place] for place in places], dim=1).numpy(),
        places=tuple(places),
        heads=tuple(head_indices),
        queries=asked(layout),
        layout=layout,
        deviation=tuple(deviation[place] for place in places),
    )


def _chosen(numbers: Sequence[int] | None, count: int, kind: str) -> list[int]:
    if numbers is None:
        return list(range(count))
    for number in numbers:
        if not -count <= number < count:
            raise ConfigError(f"There is no such {kind}.", got=number, allowed=f"0 to {count - 1}, or −1 for the last")
    return [number % count for number in numbers]
