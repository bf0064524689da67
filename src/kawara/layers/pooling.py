"""Pooling by attention: a learned query asks all tokens, and its answer stands for the image.

Set Transformer, arXiv 1810.00825, §3.2; as the head of a ViT ("MAP") in Scaling Vision Transformers, arXiv 2106.04560, §3.3:

    a = MultiHead(latent, tokens, tokens)        pooled = a + MLP(LN(a))

Differs from the papers: nothing; as in big_vision, the latent is not added to its answer, and nothing norms the result.

Axes: B batch, N tokens, D width, F MLP hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kawara.layers.attention import CrossAttention
from kawara.layers.feedforward import Activation, FeedForward


class AttentionPooling(nn.Module):
    """Multi-head attention pooling: (B, N, D) to (B, D)."""

    def __init__(self, width: int, heads: int, mlp_hidden: int, *, activation: Activation = "gelu", norm_eps: float = 1e-6):
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.attn = CrossAttention(width, heads)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = FeedForward(width, mlp_hidden, activation_name=activation)

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """Pool (B, N, D) tokens; `bias` (B, 1, 1, N) is added to the logits."""
        # A copy, not a view: torch counts operations (analysis/cost.py) with hooks that no view of a parameter takes.
        answer = self.attn(self.latent.repeat(tokens.shape[0], 1, 1), tokens, bias)[:, 0]
        return answer + self.mlp(self.norm(answer))
