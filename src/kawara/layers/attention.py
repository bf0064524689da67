"""Scaled dot-product attention and the two modules built on it.

Attention Is All You Need, arXiv 1706.03762, eq. 1; ViT, arXiv 2010.11929, eqs. 5–8:

    A = softmax(Q Kᵀ / √E)      rows sum to 1: what each query takes from each key
    output = A V

The divisor is the root of the width of one head, E = D/M, not of D. Queries, keys and values are rows here
(row convention); texts that write tokens as columns take the softmax down the columns and mean the same.
Differs from the paper: nothing.

Axes: B batch, M heads, N tokens that ask (queries), S tokens that answer (keys and values; S = N in self-attention),
D width, E = D/M.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from kawara.errors import ConfigError
from kawara.layers.merging import Merging


def attention_weights(query: Tensor, key: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return A = softmax(Q Kᵀ / √E + bias): (..., N, E) and (..., S, E) give (..., N, S), each row summing to 1.

    `bias` broadcasts to (..., N, S); −∞ hides a key from a query.
    """
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            "attention_weights: query and key differ in their last axis\n"
            f"  expected: query (..., N, E), key (..., S, E)\n  received: query {tuple(query.shape)}, key {tuple(key.shape)}"
        )
    # The scale goes onto the query because (N, E) is smaller than (N, S).
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None = None, dropout: float = 0.0, fused: bool = True
) -> Tensor:
    """Return A V: query (..., N, E), key (..., S, E), value (..., S, V) give (..., N, V).

    `fused=True` runs one kernel that never writes A to memory; `fused=False` is the formula above, step by step. Both give
    the same numbers (without dropout; with it they draw differently). `dropout` is the probability of zeroing an entry of A.

    Measured on a CPU, forward and backward, one thread, E=64: B=64 N=65 fused 18.5 ms, explicit 21.0; B=8 N=197 15.3 and
    16.3; B=2 N=785 49.4 and 48.9. So the fused path saves a tenth of the time for few tokens and memory for many.
    """
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ValueError(
            "scaled_dot_product_attention: the shapes do not fit together\n"
            "  expected: query (..., N, E), key (..., S, E), value (..., S, V)\n"
            f"  received: query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
        )
    if fused:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    weights = attention_weights(query, key, bias)
    if dropout > 0.0:
        weights = F.dropout(weights, dropout)
    return weights @ value


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """View (B, N, D) as (B, M, N, E); nothing is copied."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(tokens: Tensor) -> Tensor:
    """Undo `split_heads`: (B, M, N, E) to (B, N, D)."""
    return tokens.transpose(1, 2).flatten(2)


class _MultiHeadAttention(nn.Module):
    """What self- and cross-attention share: heads, the fused switch, the output projection."""

    fused: bool
    """Whether forward runs the fused kernel; set to False to run the explicit formula."""

    def __init__(self, width: int, heads: int, bias: bool, dropout: float, attention_dropout: float):
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(
                "The width must be a multiple of the number of heads.",
                got=f"width {width}, heads {heads}",
                remedy=f"heads {_near_divisor(width, heads)}",
            )
        self.width, self.heads, self.fused = width, heads, True
        self.attention_dropout = attention_dropout
        self.proj = nn.Linear(width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the projected, merged answer (B, N, D) to (B, M, N, E) queries; `bias` (B, 1, 1, S) is added to the logits."""
        dropout = self.attention_dropout if self.training else 0.0
        bias = None if bias is None else bias.to(query.dtype)  # under autocast the queries are narrower than the tokens
        answer = scaled_dot_product_attention(query, key, value, bias=bias, dropout=dropout, fused=self.fused)
        return self.dropout(self.proj(merge_heads(answer)))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, fused={self.fused}"


class SelfAttention(_MultiHeadAttention):
    """Multi-head self-attention: Q, K and V all come from the same tokens.

    One linear layer `qkv` makes all three, its rows ordered q, k, v and inside each head after head (timm's layout).
    """

    def __init__(self, width: int, heads: int, *, bias: bool = True, dropout: float = 0.0, attention_dropout: float = 0.0):
        super().__init__(width, heads, bias, dropout, attention_dropout)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)

    def query_key_value(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Q, K, V of (B, N, D) tokens, each (B, M, N, E): what an attention map is recomputed from."""
        return self.split(self.qkv(tokens))

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut the output of `qkv` (B, N, 3D) into Q, K, V, each (B, M, N, E)."""
        # Three strided views of one buffer, not (B,N,3,M,E).permute().unbind(): the kernel reads strides as they are, and the
        # gradient is then one concatenation along the last axis. Measured 6 % faster at B=64 N=65, 2 % at N=197.
        query, key, value = qkv.chunk(3, dim=-1)
        return split_heads(query, self.heads), split_heads(key, self.heads), split_heads(value, self.heads)

    def forward(self, tokens: Tensor, num_queries: int | None = None, merging: Merging | None = None) -> Tensor:
        """Mix (B, N, D) tokens among themselves; with `num_queries`, let only the first of them ask: (B, num_queries, D).

        With `merging`, tokens count as often as they stand for patches, and their keys are left there.
        """
        if num_queries is None:
            query, key, value = self.query_key_value(tokens)
        else:
            query, key, value = self.few_query_key_value(tokens, num_queries)
        if merging is None:
            return self.attend(query, key, value)
        merging.key = key
        return self.attend(query, key, value, merging.key_bias)

    def few_query_key_value(self, tokens: Tensor, num_queries: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return Q (B, M, num_queries, E) of the first tokens, and K, V (B, M, N, E) of all."""
        if not isinstance(self.qkv, nn.Linear):  # replaced by something whose rows cannot be taken apart, such as a quantised layer
            query, key, value = self.query_key_value(tokens)
            return query[:, :, :num_queries], key, value
        widths = [self.width, 2 * self.width]
        query_weight, memory_weight = self.qkv.weight.split(widths)
        query_bias, memory_bias = (None, None) if self.qkv.bias is None else self.qkv.bias.split(widths)
        query = F.linear(tokens[:, :num_queries], query_weight, query_bias)
        key, value = F.linear(tokens, memory_weight, memory_bias).chunk(2, dim=-1)
        return split_heads(query, self.heads), split_heads(key, self.heads), split_heads(value, self.heads)


class CrossAttention(_MultiHeadAttention):
    """Multi-head cross-attention: Q comes from the input, K and V from a memory of any length and width."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        memory_width: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__(width, heads, bias, dropout, attention_dropout)
        self.query = nn.Linear(width, width, bias=bias)
        self.key_value = nn.Linear(width if memory_width is None else memory_width, 2 * width, bias=bias)

    def query_key_value(self, tokens: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Q (B, M, N, E) of the tokens and K, V (B, M, S, E) of the memory."""
        key, value = self.key_value(memory).chunk(2, dim=-1)
        return split_heads(self.query(tokens), self.heads), split_heads(key, self.heads), split_heads(value, self.heads)

    def forward(self, tokens: Tensor, memory: Tensor, bias: Tensor | None = None) -> Tensor:
        """Let (B, N, D) tokens ask a (B, S, memory width) memory; return (B, N, D). `bias` (B, 1, 1, S) is added to the logits."""
        return self.attend(*self.query_key_value(tokens, memory), bias)


@contextmanager
def explicit_attention(model: nn.Module) -> Iterator[None]:
    """Run the attention of a model by the explicit formula: for those who have to see its products."""
    fused = {module: module.fused for module in model.modules() if isinstance(module, _MultiHeadAttention)}
    for module in fused:
        module.fused = False
    try:
        yield
    finally:
        for module, was_fused in fused.items():
            module.fused = was_fused


def _near_divisor(width: int, heads: int) -> int:
    divisors = [number for number in range(1, width + 1) if width % number == 0]
    return min(divisors, key=lambda number: abs(number - heads))
