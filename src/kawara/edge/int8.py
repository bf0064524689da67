"""Make an int8 network from a float one: rewrite it, measure what its layers see, choose how to round, leave out what breaks.

Every variant that is tried (SmoothQuant or not, three kinds of ranges) has the same graph with other numbers, hence the same speed. The one
whose answers stay nearest to those of the float network on calibration images, by KL divergence, is taken; test images have no say.
"""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kawara.data.preprocessing import Preprocessing
from kawara.edge.blame import Damage, agreement, answers, divergence, fewest, rank
from kawara.edge.folding import fold_batch_norms, smooth, smoothable
from kawara.edge.quantise import observe, quantisable, replaced, twin_of_patches, twins
from kawara.edge.ranges import RANGES
from kawara.errors import ConfigError
from kawara.models.interface import ImageModel

Progress = Callable[[str, int, int], None]
"""What is done, how much of it, of how much."""

_BATCH = 16
_JUDGED = 64
"""How many of the calibration images variants are judged by, and half as many layers."""


@dataclass
class Int8Network:
    """A float network, already rewritten, and int8 twins of its layers; those in `kept` stay in float."""

    network: ImageModel
    layers: dict[str, nn.Module]
    weight_bits: int
    variants: list[dict[str, Any]]
    """What was tried: `smoothing`, `ranges`, `kl`, `agreement` on calibration images; the one with `chosen` was taken."""
    judged: list[Tensor] = field(repr=False)
    kept: list[str] = field(default_factory=list)
    damages: list[Damage] | None = None
    """What each layer does alone, the worst first; None until `blame`."""

    def in_place(self) -> AbstractContextManager[nn.Module]:
        """Put the twins of all layers but `kept` into the network inside the block."""
        return replaced(self.network, {name: layer for name, layer in self.layers.items() if name not in self.kept})

    def blame(self, progress: Progress) -> list[Damage]:
        """Return what each layer does alone; measured once."""
        if self.damages is None:
            self.damages = rank(
                self.network, self.layers, self.judged[::2], lambda done: progress("asking each layer alone", done, len(self.layers))
            )
        return self.damages

    def keep_worst(self, loses_little: Callable[[nn.Module], bool], progress: Progress) -> bool:
        """Leave the worst layers in float, more than so far, until `loses_little`; say whether that was found with one left in int8."""
        order = [damage.layer for damage in self.blame(progress)]
        start = len(self.kept)

        def holds(more: int) -> bool:
            self.kept = order[: start + more]
            with self.in_place() as network:
                return loses_little(network)

        more = fewest(len(order) - 1 - start, holds) if len(order) - 1 > start else None
        self.kept = order[: start + (more or 0)]
        return more is not None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "weight_bits": self.weight_bits,
            "num_layers": len(self.layers),
            "float_layers": self.kept,
            "variants": self.variants,
            "layers": None if self.damages is None else [damage.to_dict() for damage in self.damages],
        }


def quantised(model: ImageModel, images: Tensor, preprocessing: Preprocessing, *, weight_bits: int, progress: Progress) -> Int8Network:
    """Make the int8 twin of a model, which is left as it is, from calibration images (n, C, H, W) that `preprocessing` has normalised.

    Raises ConfigError for a model without a layer that can be in int8.
    """
    batches = images.split(_BATCH)
    judged = list(images[:: max(1, len(images) // _JUDGED)].split(_BATCH))  # spread, because data sets are in the order of classes
    wanted = answers(model, judged)
    plain = copy.deepcopy(model).eval()
    fold_batch_norms(plain, images[:1])
    names = quantisable(plain)
    if not names:
        raise ConfigError("The model has no layer that can be in int8.", remedy="--precision fp16")

    def shown(title: str) -> Iterator[Tensor]:
        for number, batch in enumerate(batches):
            progress(title, number, len(batches))
            yield batch

    seen = observe(plain, names, shown("measuring ranges"))
    candidates = [(False, plain, seen)]
    if smoothable(plain):
        smoothed = copy.deepcopy(plain)
        smooth(smoothed, {name: record.largest for name, record in seen.items() if record.largest is not None})
        candidates.append((True, smoothed, observe(smoothed, names, shown("measuring ranges, smoothed"))))
    tried: list[tuple[float, dict[str, Any], ImageModel, dict[str, nn.Module]]] = []
    for smoothing, network, record in candidates:
        for kind in RANGES:
            progress("trying variants", len(tried), len(candidates) * len(RANGES))
            layers = twin_of_patches(network, preprocessing, weight_bits) | twins(network, record, kind, weight_bits)
            with replaced(network, layers):
                got = answers(network, judged)
            kl = divergence(wanted, got)
            tried.append((kl, {"smoothing": smoothing, "ranges": kind, "kl": kl, "agreement": agreement(wanted, got)}, network, layers))
    best = min(tried, key=lambda one: one[0])
    variants = [{**one[1], "chosen": one is best} for one in tried]
    return Int8Network(best[2], best[3], weight_bits, variants, judged)


def usual_weight_bits() -> int:
    """Return 8, or 7 for a CPU that would saturate with 8: one of x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return 8
    if not hasattr(torch.cpu, "get_capabilities"):  # older than torch 2.10
        return 8 if torch.cpu._is_vnni_supported() else 7
    capabilities = torch.cpu.get_capabilities()
    return 8 if capabilities.get("avx512_vnni") or capabilities.get("avx_vnni") else 7
