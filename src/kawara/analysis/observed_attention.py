"""Attention layers observed at work: rows of A, recomputed beside the fused forward pass and verified before anyone sees them.

A fused kernel never writes A = softmax(Q Kᵀ / √E) to memory. So the layer is watched while the model runs at full speed, Q, K and V are
made again from the tokens it was given, and the wanted rows of A are computed from them (Attention Is All You Need, arXiv 1706.03762,
eq. 1; ViT, arXiv 2010.11929, App. A). No row leaves this file unless

    1. it sums to 1 within 1e-5, and
    2. A V, sent through the output projection, is what the fused layer answered, within the tolerance of the number format.

Otherwise there is an error and no picture. (A projection that is still zero, as in a model fresh from `zero_residual`, hides everything:
the second check is then empty.) Only rows that are asked for exist, and never more than `CHUNK_ENTRIES` values of A at a time.

Axes: B batch, R prefix tokens, h w patch grid, N = R + h·w tokens, M heads, Q queries, D width, E = D/M.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kawara.analysis.evaluation_mode import evaluating
from kawara.errors import ConfigError, InternalError, UnknownNameError
from kawara.layers import taps
from kawara.layers.attention import SelfAttention, attention_weights, merge_heads
from kawara.models import ImageModel

Query = str | tuple[int, int]
"""A prefix token by name ("class", "distillation", "register 1"), a patch as (row, column), or "mean": all patches, averaged."""

CHUNK_ENTRIES = 2**24
ROW_SUM_TOLERANCE = 1e-5
# Of the largest absolute value that the fused layer answered. The fused kernel itself works in the number format of the model, and adds up
# in another order.
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_TOLERANCE_TF32 = 1e-2


@dataclass(frozen=True)
class TokenLayout:
    """Which token is what: the prefix tokens by name, then the patches row by row."""

    prefix: tuple[str, ...]
    grid: tuple[int, int]
    """(h, w)"""
    cell_px: tuple[float, float]
    """Height and width of a patch in px of the model's input."""

    @property
    def num_prefix(self) -> int:
        return len(self.prefix)

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        return self.num_prefix + self.num_patches

    def index(self, query: Query) -> int:
        """Return the number of a token. Raises ConfigError for one that does not exist."""
        if isinstance(query, str):
            if query not in self.prefix:
                raise UnknownNameError("token", query, [*self.prefix, "mean"], remedy="a patch as (row, column)")
            return self.prefix.index(query)
        (row, column), (h, w) = query, self.grid
        if not (0 <= row < h and 0 <= column < w):
            raise ConfigError("There is no such patch.", got=query, allowed=f"row 0 to {h - 1}, column 0 to {w - 1}")
        return self.num_prefix + row * w + column


def attention_places(model: torch.nn.Module) -> list[str]:
    """List the self-attention layers of a model as places to tap, in order of depth."""
    return [name for name, module in model.named_modules() if isinstance(module, SelfAttention)]


@torch.no_grad()
def token_layout(model: ImageModel, image: Tensor) -> TokenLayout:
    """Return the layout of the tokens for images (B, C, H, W) of this size; runs the model on the first of them.

    Raises ConfigError for a model that merges tokens: what is merged stands for no one place in the image.
    """
    if getattr(model.config, "merge", 0):
        raise ConfigError("This model merges tokens on their way.", got=f"merge {model.config.merge}", remedy="model.set_merging(0)")
    with evaluating(model):
        features = model.features(image[:1])
    names = [
        name for name, option in (("class", "class_token"), ("distillation", "distillation_token")) if getattr(model.config, option, False)
    ]
    names += [f"register {number + 1}" for number in range(features.num_prefix - len(names))]
    height, width = image.shape[-2:]
    h, w = features.grid
    patch = getattr(model.config, "patch_size", 0)
    # A convolutional stem rounds up: 28 px at patch 8 are 4 cells of 8 px, not of 7.
    exact = isinstance(patch, int) and patch > 0 and (-(-height // patch), -(-width // patch)) == (h, w)
    return TokenLayout(tuple(names), features.grid, (patch, patch) if exact else (height / h, width / w))


class ObservedAttention:
    """One self-attention layer at work: what it was given, what it answered, and any row of its A.

    `deviation` is the largest distance yet between A V through the projection and the answer, as a share of the answer's largest value.
    """

    def __init__(self, model: ImageModel, place: str, tokens: Tensor, answer: Tensor, layout: TokenLayout):
        """Raises ConfigError where the tokens of this layer are not those of the model's feature grid."""
        if tokens.shape[1] != layout.num_tokens:
            raise ConfigError(
                f"The tokens at {place} are not those of the model's feature grid.",
                got=f"{tokens.shape[1]} tokens",
                allowed=f"{layout.num_prefix} prefix tokens and {layout.grid[0]}×{layout.grid[1]} patches",
            )
        if tokens.shape[:2] != answer.shape[:2]:
            raise InternalError(f"{place} answered only some of its tokens.", got=f"{answer.shape[1]} of {tokens.shape[1]}")
        layer = model.get_submodule(place)
        assert isinstance(layer, SelfAttention)
        self.place, self.layer, self.layout = place, layer, layout
        self.tokens, self.answer = tokens.detach(), answer.detach()
        self.deviation = 0.0

    @cached_property
    def query_key_value(self) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K, V, each (B, M, N, E), in float32 or float64."""
        with torch.no_grad():
            query, key, value = self.layer.query_key_value(self.tokens)
            return _wide(query), _wide(key), _wide(value)

    @torch.no_grad()
    def rows(self, rows: slice) -> Tensor:
        """Return the rows of A of these queries, (B, M, Q, N). Raises InternalError where they do not explain the answer."""
        query, key, value = self.query_key_value
        with torch.autocast(query.device.type, enabled=False):
            weights = attention_weights(query[:, :, rows], key)
            projection = self.layer.proj
            bias = None if projection.bias is None else _wide(projection.bias)
            explained = F.linear(merge_heads(weights @ value), _wide(projection.weight), bias)
        self._verify(weights, explained, self.answer[:, rows])
        return weights

    def chunks(self, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """Yield (queries, rows of A (B, M, Q, N)) from query `first` to the last, as many at a time as memory is meant for."""
        num_images, num_tokens, _ = self.tokens.shape
        step = max(1, CHUNK_ENTRIES // (num_images * self.layer.heads * num_tokens))
        for start in range(first, num_tokens, step):
            rows = slice(start, min(start + step, num_tokens))
            yield rows, self.rows(rows)

    def of(self, query: Query) -> Tensor:
        """Return what one query takes from every token, (B, M, N). Raises ConfigError for one that does not exist."""
        if query != "mean":
            row = self.layout.index(query)
            return self.rows(slice(row, row + 1))[:, :, 0]
        total = sum(weights.sum(dim=2) for _, weights in self.chunks(self.layout.num_prefix))
        assert isinstance(total, Tensor)
        return total / self.layout.num_patches

    def _verify(self, weights: Tensor, explained: Tensor, answer: Tensor) -> None:
        off = (weights.sum(dim=-1) - 1).abs().max().item()
        if not off <= ROW_SUM_TOLERANCE:
            raise InternalError(
                f"The attention recomputed at {self.place} is not one: its rows do not sum to 1.",
                got=f"a row sum {off:.1e} away from 1",
                allowed=f"{ROW_SUM_TOLERANCE:.0e}",
            )
        largest = self.answer.abs().amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)  # each image for itself
        distance = ((explained - answer).abs() / largest).max().item()
        allowed = _tolerance(answer)
        if not distance <= allowed:
            raise InternalError(
                f"The attention recomputed at {self.place} is not what the model did: A V does not give the layer's own answer.",
                got=f"a distance of {distance:.1e}, as a share of the largest value",
                allowed=f"{allowed:.0e}",
            )
        self.deviation = max(self.deviation, distance)


@torch.no_grad()
def observe_attention(
    model: ImageModel, image: Tensor, visit: Callable[[ObservedAttention], None], places: Sequence[str] | None = None
) -> TokenLayout:
    """Run the backbone on (B, C, H, W) with its own kernels; hand each attention layer to `visit` as it happens.

    Every token is answered in every layer, also in a last block that a classifier would run for the class token alone. What `visit` does
    not keep is gone when the layer is. Raises ConfigError for a model without self-attention.
    """
    places = require_attention(model) if places is None else places
    layout = token_layout(model, image)

    def look(place: str, output: Tensor, inputs: tuple[Any, ...]) -> Tensor:
        visit(ObservedAttention(model, place, inputs[0], output, layout))
        return output

    with evaluating(model), taps.replace(model, {place: partial(look, place) for place in places}):
        model.features(image)
    return layout


def default_query(layout: TokenLayout) -> Query:
    """Return what a classifier is likely to read: the class token, or the mean over the patches where there is none."""
    return "class" if "class" in layout.prefix else "mean"


def require_attention(model: ImageModel) -> list[str]:
    """Return `attention_places`. Raises ConfigError where there are none."""
    places = attention_places(model)
    if not places:
        raise ConfigError(
            "This model has no self-attention layers.", got=type(model).__name__, remedy="Grad-CAM or occlusion, which need none"
        )
    return places


def _wide(tensor: Tensor) -> Tensor:
    """Return float64 as it is, anything else as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _tolerance(answer: Tensor) -> float:
    if answer.dtype == torch.float32 and answer.is_cuda and torch.get_float32_matmul_precision() != "highest":
        return _TOLERANCE_TF32
    return _TOLERANCES[answer.dtype]
