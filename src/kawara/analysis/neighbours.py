"""Weighted k-nearest-neighbour classification of frozen features: how well images of a class lie together, with nothing fitted at all.

DINO (arXiv 2104.14294, §4.1; the code's `eval_knn.py`), after instance discrimination (arXiv 1805.01978, §3.4). For a query q and its k
most similar support images s₁ … s_k:

    similarity = cos(q, sᵢ)           votes for class c = Σ exp(similarity / T)  over the neighbours of class c,   T = 0.07

k = 20 is usually best (DINO). Similarities are computed in the type of the features, votes in float64.

Axes: n support images, m queries, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kawara.data.cache import ProgressCallback
from kawara.errors import ConfigError

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
_QUERY_BLOCK, _SUPPORT_BLOCK = 512, 32_768  # 64 MiB of similarities in float32


def nearest_neighbours(queries: Tensor, support: Tensor, k: int, *, support_block: int = _SUPPORT_BLOCK) -> tuple[Tensor, Tensor]:
    """Return cosine similarities (m, k), largest first, and positions (m, k) of the k nearest of support (n, D) for queries (m, D).

    Only (m, support_block) similarities exist at a time. Raises ConfigError where k is not in [1, n].
    """
    if not 1 <= k <= len(support):
        raise ConfigError("The number of neighbours is out of range.", got=k, allowed=f"1 to {len(support)}, the number of support images")
    queries = F.normalize(queries, dim=1)
    similarity, position = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(support), support_block):
        block = F.normalize(support[start : start + support_block], dim=1)
        near, index = (queries @ block.T).topk(min(k, len(block)), dim=1)
        similarity, position = torch.cat([similarity, near], dim=1), torch.cat([position, index + start], dim=1)
        similarity, kept = similarity.topk(min(k, similarity.shape[1]), dim=1)
        position = position.gather(1, kept)
    return similarity, position


def votes(similarity: Tensor, labels: Tensor, num_classes: int, *, temperature: float = TEMPERATURE) -> Tensor:
    """Return the votes (m, K) float64 of neighbours with similarities and labels (m, k)."""
    weights = (similarity.double() / temperature).exp()
    return weights.new_zeros(len(labels), num_classes).scatter_add_(1, labels, weights)


def knn_predict(
    queries: Tensor,
    support: Tensor,
    support_labels: Tensor,
    *,
    num_classes: int,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    query_block: int = _QUERY_BLOCK,
    support_block: int = _SUPPORT_BLOCK,
    progress: ProgressCallback | None = None,
) -> dict[int, Tensor]:
    """Return {k: classes (m,) int64 on the CPU} of queries (m, D), from support (n, D) with labels (n,), for each k of `neighbours`.

    The similarities are computed where the features are; beside them, memory does not grow with n or m.

    Args:
        progress: called with (queries done, queries in all, "").

    Raises:
        ConfigError: a k is not in [1, n].
    """
    labels = support_labels.cpu()
    predicted: dict[int, list[Tensor]] = {k: [] for k in neighbours}
    for start in range(0, len(queries), query_block):
        block = queries[start : start + query_block]
        similarity, position = (found.cpu() for found in nearest_neighbours(block, support, max(neighbours), support_block=support_block))
        near = labels[position]
        for k, answers in predicted.items():
            answers.append(votes(similarity[:, :k], near[:, :k], num_classes, temperature=temperature).argmax(dim=1))
        if progress is not None:
            progress(start + len(block), len(queries), "")
    return {k: torch.cat(answers) for k, answers in predicted.items()}
