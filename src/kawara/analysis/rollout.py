"""Attention through all layers at once: which patches can have reached the answer.

Rollout (Abnar & Zuidema, arXiv 2005.00928, eq. 1; ViT, arXiv 2010.11929, App. D.8). A_l averaged over the heads, the skip connection as the
identity, each row scaled to sum 1:

    Â_l = (A_l + I) / 2          R_l = Â_l R_{l−1},  R_0 = I          rows of R_l sum to 1

Gradient-weighted rollout (Chefer et al., arXiv 2103.15679, eqs. 5–6): each entry of each head weighted by what it does for the class,

    Ā_l = mean over heads of max(0, ∂y_c/∂A_l ⊙ A_l)          R_l = R_{l−1} + Ā_l R_{l−1}

The gradient is exact and needs no explicit attention in the forward pass: with O = A V the answer of the heads, ∂y/∂A = ∂y/∂O · Vᵀ, and
∂y/∂O comes through the projection from the layer's own output.

Only a few rows of R are wanted (those of the class token, say), so they are carried from the last layer to the first as row vectors,
r ← r Â_l: no N×N product is ever formed, and A exists a few rows at a time. Not done here: the widely copied "discard ratio", whose code
scales columns where the paper scales rows.

Axes: B batch, R prefix tokens, h w patch grid, N = R + h·w tokens, M heads, E head width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kawara.analysis.evaluation_mode import evaluating
from kawara.analysis.observed_attention import (
    ObservedAttention,
    Query,
    TokenLayout,
    default_query,
    observe_attention,
    require_attention,
    token_layout,
)
from kawara.errors import ConfigError
from kawara.layers import taps
from kawara.layers.attention import split_heads
from kawara.models import ImageModel
from kawara.models.interface import Features, mean_of_heads

Maps = NDArray[np.float32]


def rollout(attention: Iterable[Tensor]) -> Tensor:
    """Return R_L (…, N, N) from the head-averaged A of each layer (…, N, N), the first layer first.

    The definition, for few tokens: row q says where the information at token q after the last layer came from.
    """
    result: Tensor | None = None
    for weights in attention:
        step = weights + torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
        step = step / step.sum(dim=-1, keepdim=True)
        result = step if result is None else step @ result
    if result is None:
        raise ConfigError("Rollout needs the attention of at least one layer.")
    return result


def attention_rollout(model: ImageModel, image: Tensor, *, start: Query | None = None) -> Maps:
    """Return how much of each patch reaches the token `start`, (B, h, w), for normalised images (B, C, H, W).

    The values and what comes from the prefix tokens sum to 1. `start` None: the class token; in a model without one, the mean over
    the patches. Raises ConfigError for a model without attention, InternalError where the recomputed attention is not the model's.
    """
    layers: list[ObservedAttention] = []
    layout = observe_attention(model, image, layers.append)
    reached = _start(layout, start, image)
    while layers:
        layer = layers.pop()  # and with it, in the end, its Q, K and V
        carried = torch.zeros_like(reached)
        for rows, weights in layer.chunks():
            carried += torch.einsum("bq,bqk->bk", reached[:, rows], weights.mean(dim=1))
        reached = (reached + carried) / 2
    return _patches(reached, layout)


def gradient_rollout(model: ImageModel, image: Tensor, targets: Tensor | None = None, *, start: Query | None = None) -> Maps:
    """Return the relevance of each patch for the logit of `targets`, (B, h, w) ≥ 0, for normalised images (B, C, H, W).

    R_L without the identity. `targets` (B,) None: the predicted classes. Not scaled: the sum depends on the size of the gradients. `start`
    as for `attention_rollout`. Raises ConfigError for a model without attention or without a head.
    """
    places = require_attention(model)
    layout = token_layout(model, image)
    names = [*places, *(f"{place}:input" for place in places)]
    with torch.enable_grad(), evaluating(model), taps.read(model, *names, detach=False) as found:
        # A gradient is wanted even where every parameter is frozen.
        logits = class_logits(model, model.features(image.detach().requires_grad_()))
        score = logits.gather(1, chosen_targets(logits, targets)[:, None]).sum()
        gradients = torch.autograd.grad(score, [found[place] for place in places])
    begun = _start(layout, start, image)
    reached = torch.zeros_like(begun)  # without the identity, beside which small relevances would lose their digits
    for place, gradient in reversed(list(zip(places, gradients))):
        attention = ObservedAttention(model, place, found[f"{place}:input"], found[place], layout)
        value = attention.query_key_value[2]
        with torch.no_grad():
            of_heads = split_heads(gradient.to(value.dtype) @ attention.layer.proj.weight.to(value.dtype), attention.layer.heads)
            carried = torch.zeros_like(reached)
            for rows, weights in attention.chunks():
                relevance = (of_heads[:, :, rows] @ value.transpose(-2, -1) * weights).clamp_min_(0).mean(dim=1)
                carried += torch.einsum("bq,bqk->bk", (begun + reached)[:, rows], relevance)
        reached = reached + carried
    return _patches(reached, layout)


def class_logits(model: ImageModel, features: Features) -> Tensor:
    """Return logits (B, K), the mean of the heads. Raises ConfigError for a model without one."""
    require_head(model)
    return mean_of_heads(model.apply_heads(features))


def require_head(model: ImageModel) -> None:
    """Raise ConfigError for a model without classes."""
    if not model.config.num_classes:
        raise ConfigError("This model has no head, so there is no class to explain.", remedy="a model with num_classes ≥ 1")


def chosen_targets(logits: Tensor, targets: Tensor | None) -> Tensor:
    """Return `targets` (B,) on the device of the logits, or the predicted classes. Raises ConfigError for classes that do not exist."""
    if targets is None:
        return logits.detach().argmax(dim=1)
    targets = torch.as_tensor(targets, device=logits.device)
    if targets.shape != logits.shape[:1] or int(targets.min()) < 0 or int(targets.max()) >= logits.shape[1]:
        raise ConfigError(
            "The classes to explain do not fit.",
            got=f"{tuple(targets.shape)}, {targets.tolist()[:8]}",
            allowed=f"({len(logits)},) in 0 to {logits.shape[1] - 1}",
        )
    return targets


def _start(layout: TokenLayout, start: Query | None, image: Tensor) -> Tensor:
    """Return the rows of the identity (B, N) that are carried: one token, or the mean over the patches."""
    start = default_query(layout) if start is None else start
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    rows = torch.zeros(len(image), layout.num_tokens, dtype=dtype, device=image.device)
    if start == "mean":
        rows[:, layout.num_prefix :] = 1 / layout.num_patches
    else:
        rows[:, layout.index(start)] = 1
    return rows


def _patches(reached: Tensor, layout: TokenLayout) -> Maps:
    return reached[:, layout.num_prefix :].unflatten(1, layout.grid).float().cpu().numpy()
