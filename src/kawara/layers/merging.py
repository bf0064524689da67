"""Token merging: in every block, tokens that are alike become one.

ToMe, Bolya et al., "Token Merging: Your ViT But Faster", arXiv 2210.09461. Between attention and MLP of a block (§3, App. D):

    1. split the tokens into A (even numbers) and B (odd numbers)                bipartite: no chains of merges
    2. for each a find the b whose key is most like its own                      cosine of the keys, averaged over the heads
    3. merge the r most alike of A into their partners                           several may go to the same b
    4. x_b ← (s_b x_b + Σ s_a x_a) / (s_b + Σ s_a),   s_b ← s_b + Σ s_a          s: how many patches a token stands for
    5. go on with [prefix, what is left of A, B]                                 N − r tokens, whatever the image shows

A token that stands for s patches is attended as s equal keys would be: softmax(Q Kᵀ / √E + log s) (eq. 1, "proportional attention"). A
mean over patches is weighted by s for the same reason.

Differs from the paper: all prefix tokens are protected, registers too, which stand for no place in the image; what is left of A keeps its
order in models without a class token as well (the paper's code orders it by likeness there, and the next split is by position).

Axes: B batch, M heads, R prefix tokens, N tokens, E key width, D width, r merged tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

EVERY = 2
"""Blocks between two merges that serve a trained model best: on DeiT-Ti 18 tokens in every second block lose less than 9 in each, and the
matching, which is not free, runs half as often."""


def merge_schedule(r: int, num_blocks: int, inflection: float = 0.0, every: int = 1) -> tuple[int, ...]:
    """Return how many tokens each block merges: r in each with inflection 0, from 2r down to 0 with −1, from 0 up to 2r with 1.

    As in the paper's code: ⌊first + l (2r − 2 first)/(L − 1)⌋ in block l, where first = ⌊r (1 − inflection)⌋. With `every` above 1, a block
    of that many merges for all of them, the last of them first: blocks 1, 3, 5, … (from 0) for 2.
    """
    first = int(r * (1.0 - inflection))
    step = (2 * r - 2 * first) / max(1, num_blocks - 1)
    each = [int(first + step * index) for index in range(num_blocks)]
    return tuple(sum(each[index + 1 - every : index + 1]) if (index + 1) % every == 0 else 0 for index in range(num_blocks))


def num_merged(r: int, num_tokens: int, num_prefix: int) -> int:
    """Return how many of `num_tokens` can be merged at once: r, but at most half of those that are not prefix."""
    return max(0, min(r, (num_tokens - num_prefix) // 2))


class Matching(NamedTuple):
    """Who goes where. All are numbers of tokens."""

    kept: Tensor
    """(B, N − r): who stays, in the new order."""
    merged: Tensor
    """(B, r): who goes."""
    into: Tensor
    """(B, r): where each of `merged` goes, as a place in `kept`."""


def match_tokens(metric: Tensor, r: int, num_prefix: int) -> Matching:
    """Find the r pairs of (B, N, E) that are most alike, the first `num_prefix` tokens left out. r as `num_merged` allows."""
    num_tokens = metric.shape[1]
    metric = metric.detach()
    metric = metric / metric.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    # Even and odd numbers behind the prefix.
    a, b = num_prefix + num_prefix % 2, num_prefix + 1 - num_prefix % 2
    likeness, partner = (metric[:, a::2] @ metric[:, b::2].transpose(-2, -1)).max(dim=-1)
    order = likeness.argsort(dim=-1, descending=True)
    merged, left = order[:, :r], order[:, r:].sort(dim=-1).values
    prefix, second = (torch.arange(*span, device=metric.device).expand(metric.shape[0], -1) for span in ((num_prefix,), (b, num_tokens, 2)))
    into = num_prefix + left.shape[1] + partner.gather(1, merged)
    return Matching(torch.cat([prefix, a + 2 * left, second], dim=1), a + 2 * merged, into)


def merge_tokens(tokens: Tensor, size: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """Average (B, N, D) tokens by their sizes (B, N, 1), as matched: (B, N − r, D) and (B, N − r, 1)."""
    kept, merged = _rows(tokens, matching.kept), _rows(tokens, matching.merged)
    moved = _rows(size, matching.merged)
    size = _add_to_rows(_rows(size, matching.kept), matching.into, moved)
    # x_b + Σ s_a/s_b (x_a − x_b) with the new s_b: the same average, but only the few rows that change are computed.
    share = moved / _rows(size, matching.into)
    return _add_to_rows(kept, matching.into, share * (merged - _rows(kept, matching.into))), size


class Merging:
    """The merging of one forward pass: what each block tells the next.

    A block's attention reads `key_bias` and leaves its keys in `key`; behind it, the block calls `merge`.
    """

    size: Tensor | None = None
    """(B, N, 1): how many patches each token stands for; None before the first merge."""
    key: Tensor | None = None
    """(B, M, N, E): the keys of the latest attention."""

    def __init__(self, schedule: Sequence[int], num_prefix: int, *, proportional: bool = True):
        self.left, self.num_prefix, self.proportional = list(schedule), num_prefix, proportional
        self.matchings: list[Matching] = []

    @property
    def key_bias(self) -> Tensor | None:
        """log s, (B, 1, 1, N), which is added to the logits of the attention; None where all are alike."""
        if self.size is None or not self.proportional:
            return None
        return self.size.log().transpose(1, 2).unsqueeze(1)

    def merge(self, tokens: Tensor) -> Tensor:
        """Merge as many tokens of (B, N, D) as it is this block's turn to."""
        assert self.key is not None
        r = num_merged(self.left.pop(0), tokens.shape[1], self.num_prefix)
        if r == 0:
            return tokens
        matching = match_tokens(self.key.mean(dim=1), r, self.num_prefix)
        self.matchings.append(matching)
        size = torch.ones_like(tokens[..., :1]) if self.size is None else self.size
        tokens, self.size = merge_tokens(tokens, size, matching)
        return tokens

    def places(self, num_tokens: int) -> Tensor:
        """Return where each of the `num_tokens` tokens before the first block is now, (B, N)."""
        assert self.matchings
        places = torch.arange(num_tokens, device=self.matchings[0].kept.device).expand(self.matchings[0].kept.shape[0], -1)
        for kept, merged, into in self.matchings:
            order = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
            moved = torch.cat([order, into], dim=1)
            moved = torch.zeros_like(moved).scatter(1, torch.cat([kept, merged], dim=1), moved)
            places = moved.gather(1, places)
        return places

    def unmerge(self, tokens: Tensor, num_tokens: int) -> Tensor:
        """Give each of the `num_tokens` tokens before the first block the one that it went into: (B, N − Σr, D) to (B, N, D)."""
        return _rows(tokens, self.places(num_tokens)) if self.matchings else tokens


def _rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Return tokens[i, index[i]] for (B, N, D) and (B, n): (B, n, D)."""
    # As rows of the flattened batch: run times copy whole rows then, where a gather moves number by number.
    first = torch.arange(tokens.shape[0], device=index.device).unsqueeze(1) * tokens.shape[1]
    return tokens.flatten(0, 1).index_select(0, (first + index).flatten()).unflatten(0, index.shape)


def _add_to_rows(tokens: Tensor, index: Tensor, summands: Tensor) -> Tensor:
    """Add summands[i, j] to tokens[i, index[i, j]], for (B, N, D), (B, n) and (B, n, D); the same row may occur several times."""
    return tokens.scatter_add(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]), summands)
