"""The feed-forward part of a block: two dense layers with a non-linearity between, applied to each token alone.

ViT, arXiv 2010.11929, §3.1:    MLP(z) = W₂ GELU(W₁ z + b₁) + b₂, hidden width F = 4D in all standard sizes
SwiGLU, arXiv 2002.05202, §2:   MLP(z) = W₂ (SiLU(g) ⊙ u) + b₂ with [g; u] = W₁ z + b₁ (DINOv2's ViT-g, arXiv 2304.07193)

Which GELU: the JAX original uses the tanh approximation, timm, torchvision, Hugging Face and DeiT the exact erf form. The two
functions differ by up to 4.7e-4, so converted weights answer alike only with the form they were trained with. On a CPU the erf form is
also the fast one (torch's tanh form takes four times as long), hence the default.

Axes: B batch, N tokens, D width, F hidden.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from kawara.errors import UnknownNameError

Activation = Literal["gelu", "gelu_tanh", "relu"]
Mlp = Literal["dense", "swiglu"]


def activation(name: Activation) -> nn.Module:
    """Return the non-linearity called `name`: exact (erf) GELU, GELU by tanh, or ReLU."""
    if name == "gelu":
        return nn.GELU()
    if name == "gelu_tanh":
        return nn.GELU(approximate="tanh")
    if name == "relu":
        return nn.ReLU()
    raise UnknownNameError("activation", name, get_args(Activation))


class FeedForward(nn.Module):
    """Two dense layers, (..., D) to (..., D), with dropout after each (ViT, App. B.1)."""

    def __init__(self, width: int, hidden: int, *, activation_name: Activation = "gelu", bias: bool = True, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.act = activation(activation_name)
        self.dropout1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, width, bias=bias)
        self.dropout2 = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.dropout1(self.act(self.fc1(tokens)))
        return self.dropout2(self.fc2(hidden))


class GatedFeedForward(nn.Module):
    """SwiGLU, (..., D) to (..., D): `fc1` makes the gate and what it lets through, in this order, F wide each."""

    def __init__(self, width: int, hidden: int, *, bias: bool = True, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden, bias=bias)
        self.dropout1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, width, bias=bias)
        self.dropout2 = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, values = self.fc1(tokens).chunk(2, dim=-1)
        return self.dropout2(self.fc2(self.dropout1(F.silu(gate) * values)))


class TanhLayer(nn.Linear):
    """A dense layer with tanh: the hidden layer of the ViT paper's head (§3.1), which its code calls `pre_logits`."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).tanh()
