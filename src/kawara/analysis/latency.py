"""How long models take: one image at a time, as many a second as can be, and over the image size.

What a number here means: evaluation mode, no gradients, float32, `threads` intra-op threads (1 unless said otherwise), images made
beforehand. Models that are compared are timed in turns, A B A B …, in one process, so that what else the machine does meets them all alike.
The first runs are thrown away (warm-up).

Axes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kawara import models, runtime
from kawara.analysis.cost import count_macs
from kawara.analysis.evaluation_mode import evaluating
from kawara.errors import ConfigError
from kawara.models import ImageModel

WARM_UP = 3
LARGEST_BATCH = 128
_GAIN = 1.02
"""A larger batch must be this much faster than the best so far to count as faster."""
_PATIENCE = 2
_LONGEST_S = 1.5
"""No batch is tried that would take longer for one pass."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one image, over `repeats` runs."""

    p50_ms: float
    p95_ms: float
    repeats: int


@dataclass(frozen=True)
class Throughput:
    """Images a second at the batch size that gave most."""

    images_per_second: float
    batch_size: int


@dataclass(frozen=True)
class SizeCost:
    """What one image costs at one side length. `ms` is None where the model was too large to be timed."""

    image_size_px: int
    macs: int
    ms: float | None


def batch_one_latency(candidates: Sequence[ImageModel], *, repeats: int = 100, threads: int = 1) -> list[Latency]:
    """Time one image at a time through each model, in turns."""
    seconds = _timed_in_turns(candidates, [1] * len(candidates), repeats, threads)
    return [Latency(float(np.percentile(row, 50) * 1e3), float(np.percentile(row, 95) * 1e3), repeats) for row in seconds]


def throughput(candidates: Sequence[ImageModel], *, repeats: int = 3, threads: int = 1, largest: int = LARGEST_BATCH) -> list[Throughput]:
    """Find the batch size, of 1, 2, 4, …, with most images a second, for each model.

    The models take turns; the best of `repeats` counts.
    """
    best = [Throughput(0.0, 1)] * len(candidates)
    stale = [0] * len(candidates)
    batch = 1
    while batch <= largest and any(count < _PATIENCE for count in stale):
        trying = [index for index, count in enumerate(stale) if count < _PATIENCE]
        seconds = _timed_in_turns([candidates[index] for index in trying], [batch] * len(trying), repeats, threads, warm_up=1)
        for index, row in zip(trying, seconds):
            rate = batch / float(row.min())
            stale[index] = 0 if rate > _GAIN * best[index].images_per_second else stale[index] + 1
            if rate > best[index].images_per_second:
                best[index] = Throughput(rate, batch)
            if 2 * row.min() > _LONGEST_S:
                stale[index] = _PATIENCE
        batch *= 2
    return best


def usual_sizes(config: Any) -> list[int]:
    """Return the sides in px at which cost is worth knowing: the model's own, and 1½ to 8 times it."""
    side = min(config.image_size)
    return sorted({round(side * factor) for factor in (1, 1.5, 2, 3, 4, 6, 8)})


def cost_over_size(
    configs: Sequence[Any],
    sizes_px: Sequence[int],
    *,
    repeats: int = 7,
    threads: int = 1,
    most_macs: float = 4e9,
    device: torch.device | str = "cpu",
) -> list[list[SizeCost]]:
    """Return for each configuration what square images of these sides cost: MACs and milliseconds.

    The MACs hold the attention; the time is that of one image, the least of `repeats`. Weights do not matter here: the models are built
    anew at each size. Sizes that a model does not take are left out of its list; one of more than `most_macs` is counted but not timed.
    """
    costs: list[list[SizeCost]] = [[] for _ in configs]
    for side in sizes_px:
        there: list[tuple[int, int, ImageModel | None]] = []
        for index, config in enumerate(configs):
            try:
                sized = dataclasses.replace(config, image_size=(side, side))
            except ConfigError:
                continue
            with torch.device("meta"):
                macs = count_macs(models.build(sized))
            there.append((index, macs, models.build(sized).eval().to(device) if macs <= most_macs else None))
        timed = [model for _, _, model in there if model is not None]
        times = iter(_timed_in_turns(timed, [1] * len(timed), repeats, threads))
        for index, macs, model in there:
            costs[index].append(SizeCost(side, macs, None if model is None else float(next(times).min() * 1e3)))
    return costs


def seconds_in_turns(runs: Sequence[Callable[[], object]], repeats: int, *, warm_up: int = WARM_UP) -> np.ndarray:
    """Return the seconds (runs, repeats) that each call took, A B C A B C …, the first `warm_up` rounds left out."""
    seconds = np.empty((len(runs), repeats))
    for turn in range(-warm_up, repeats):
        for row, run in enumerate(runs):
            started = time.perf_counter()
            run()
            if turn >= 0:
                seconds[row, turn] = time.perf_counter() - started
    return seconds


@torch.inference_mode()
def _timed_in_turns(
    candidates: Sequence[ImageModel], batch_sizes: Sequence[int], repeats: int, threads: int, *, warm_up: int = WARM_UP
) -> np.ndarray:
    """Return the seconds (models, repeats) of forward passes."""

    def run(model: ImageModel, batch: int) -> Callable[[], None]:
        image = _noise(model, batch)

        def once() -> None:
            model(image)
            _wait(image.device)

        return once

    runs = [run(model, batch) for model, batch in zip(candidates, batch_sizes)]
    with runtime.threads(threads), _all_evaluating(candidates):
        return seconds_in_turns(runs, repeats, warm_up=warm_up)


def _noise(model: ImageModel, batch: int) -> torch.Tensor:
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    shape = (batch, model.config.channels, *model.config.image_size)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


@contextmanager
def _all_evaluating(candidates: Sequence[ImageModel]) -> Iterator[None]:
    if not candidates:
        yield
        return
    with evaluating(candidates[0]), _all_evaluating(candidates[1:]):
        yield


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
