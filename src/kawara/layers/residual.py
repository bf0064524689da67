"""The residual stream: the pre-norm block, its skip connections, stochastic depth and layer scale.

ViT, arXiv 2010.11929, eqs. 2–3:    z' = MSA(LN(z)) + z        z'' = MLP(LN(z')) + z'
Stochastic depth (Huang et al., arXiv 1603.09382; rates and form as in DeiT, arXiv 2012.12877): each image drops a branch with
probability p, a branch that is kept is divided by 1 − p; p grows linearly from 0 at the first block to its maximum at the last.
Layer scale (CaiT, arXiv 2103.17239): a branch is multiplied by a learned vector γ before it joins.

Axes: B batch, N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kawara.layers.attention import SelfAttention
from kawara.layers.feedforward import Activation, FeedForward, GatedFeedForward, Mlp
from kawara.layers.merging import Merging


def stochastic_depth_rates(maximum: float, num_blocks: int) -> list[float]:
    """Return linspace(0, maximum, num_blocks): one rate per block, 0 for the first, `maximum` for the last."""
    return [maximum * index / max(1, num_blocks - 1) for index in range(num_blocks)]


class StochasticDepth(nn.Module):
    """Zero whole samples of a (B, ...) branch with probability `rate` while training; divide the others by 1 − rate."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        return branch * self.mask(branch, branch.shape[0])

    def mask(self, branch: Tensor, num_rows: int) -> Tensor:
        """Draw what the rows of a branch are multiplied by, (num_rows, 1, ...): 0 or 1 / (1 − rate)."""
        keep = 1.0 - self.rate
        # Drawn in float32 and cast once scaled, so that bf16 and fp16 use the rate they were given.
        return torch.empty((num_rows,) + (1,) * (branch.ndim - 1), device=branch.device).bernoulli_(keep).div_(keep).to(branch.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}"


class LayerScale(nn.Module):
    """Multiply (..., D) by a learned vector that starts at `initial`."""

    def __init__(self, width: int, initial: float):
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.gamma


class SkipConnection(nn.Module):
    """Add a branch to the stream, with stochastic depth.

    A module of its own so that a tap can read stream and branch separately, or take the skip away (Raghu et al., arXiv 2108.08810, §5).
    """

    def __init__(self, rate: float):
        super().__init__()
        self.stochastic_depth = StochasticDepth(rate)

    def forward(self, stream: Tensor, branch: Tensor) -> Tensor:
        return stream + self.stochastic_depth(branch)


class Block(nn.Module):
    """One pre-norm transformer block: (B, N, D) to (B, N, D), or to (B, N − r, D) with token merging."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_hidden: int,
        *,
        mlp: Mlp = "dense",
        activation: Activation = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = SelfAttention(width, heads, bias=bias, dropout=dropout, attention_dropout=attention_dropout)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.skip1 = SkipConnection(stochastic_depth)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        if mlp == "swiglu":
            self.mlp = GatedFeedForward(width, mlp_hidden, bias=bias, dropout=dropout)
        else:
            self.mlp = FeedForward(width, mlp_hidden, activation_name=activation, bias=bias, dropout=dropout)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.skip2 = SkipConnection(stochastic_depth)

    def forward(self, tokens: Tensor, num_queries: int | None = None, merging: Merging | None = None) -> Tensor:
        """Return all tokens, or the first `num_queries` alone, which is all that a last block with a class token is asked for."""
        stream = tokens if num_queries is None else tokens[:, :num_queries]
        tokens = self.skip1(stream, self.ls1(self.attn(self.norm1(tokens), num_queries, merging)))
        if merging is not None and num_queries is None:
            tokens = merging.merge(tokens)
        return self.skip2(tokens, self.ls2(self.mlp(self.norm2(tokens))))
