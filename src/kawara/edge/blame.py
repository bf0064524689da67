"""Which layers lose what an int8 model loses, and how few have to stay in float32.

Each layer is put in int8 alone, all others in float32, and asked for

    SNR = 10 log₁₀ Σ y² / Σ (ŷ − y)²      of what it gives, in decibels
    KL(p ‖ p̂) = Σ p (log p − log p̂)       of the answers of the whole model, averaged over the images
    agreement                              the share of images with the same likeliest class

The ranking is by KL: what a layer does to the answers, not how noisy it is. It needs no labels, so that no test image takes part in it.

Axes: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kawara.edge.quantise import replaced

_TINY = 1e-12


@dataclass(frozen=True)
class Damage:
    """What one layer does when it alone is in int8."""

    layer: str
    snr_db: float
    kl: float
    agreement: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@torch.no_grad()
def answers(network: nn.Module, batches: Sequence[Tensor], progress: Callable[[int], None] | None = None) -> Tensor:
    """Return log-probabilities (B, K) of all normalised images (B, C, H, W), given in batches."""
    parts = []
    for number, images in enumerate(batches):
        if progress is not None:
            progress(number)
        parts.append(network(images).float().log_softmax(dim=-1))
    return torch.cat(parts)


def divergence(log_p: Tensor, log_q: Tensor) -> float:
    """Return the mean of KL(p ‖ q) for log-probabilities (B, K)."""
    return float((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean())


def agreement(log_p: Tensor, log_q: Tensor) -> float:
    """Return the share of rows of (B, K) with the same likeliest class."""
    return float((log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).float().mean())


def rank(
    network: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Tensor], progress: Callable[[int], None] | None = None
) -> list[Damage]:
    """Return what each of the int8 layers does alone to the answers of a float network, the worst first."""
    wanted = answers(network, batches)
    found = []
    for number, (name, layer) in enumerate(layers.items()):
        if progress is not None:
            progress(number)
        energy = _Energy(network.get_submodule(name))
        hook = layer.register_forward_hook(energy.measure)
        try:
            with replaced(network, {name: layer}):
                got = answers(network, batches)
        finally:
            hook.remove()
        found.append(Damage(name, energy.snr_db, divergence(wanted, got), agreement(wanted, got)))
    return sorted(found, key=lambda damage: (-damage.kl, damage.snr_db))


def fewest(num_layers: int, holds: Callable[[int], bool]) -> int | None:
    """Return about the smallest number of layers for which `holds`, or None if it does not hold for all but one.

    Tries 1, 2, 4, …, then halves the gap: exact where more layers never make it worse.
    """
    below, tried = 0, 1
    while not holds(tried):
        if tried == num_layers:
            return None
        below, tried = tried, min(2 * tried, num_layers)
    while tried - below > 1:
        middle = (below + tried) // 2
        below, tried = (below, middle) if holds(middle) else (middle, tried)
    return tried


class _Energy:
    """Sums of squares of what a float layer gives, and of what its twin lacks, over all that the twin is asked."""

    def __init__(self, layer: nn.Module):
        self._layer = layer
        self._signal = self._noise = 0.0

    def measure(self, twin: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        wanted = self._layer(inputs[0])
        if getattr(twin, "rectified", False):
            wanted = wanted.relu()
        self._signal += float(wanted.square().sum())
        self._noise += float((output - wanted).square().sum())

    @property
    def snr_db(self) -> float:
        signal, noise = (torch.tensor(max(value, _TINY), dtype=torch.float64) for value in (self._signal, self._noise))
        return float(10 * torch.log10(signal / noise))
