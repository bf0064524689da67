"""The CNN of the same size as a ViT, and the ViT of the same size as a CNN.

The same size is one of: parameters, MACs of one image, measured latency at batch 1. Every named model of the other kind is a candidate,
nearest first in parameters and MACs together, so that a twin in one is no stranger in the other. A candidate is stretched until it fits:

    CNN   the widths of all stages by one factor, each rounded to a multiple of 2 (of 1 or of the group width where that is needed);
          where that is not enough, with half the blocks
    ViT   the number of blocks, then the hidden width of the MLP; width and heads stay

A twin is found when the mismatch |size − wanted| / wanted is at most 2 % (10 % for latency, which is measured and not the same twice).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from kawara import models
from kawara.analysis.cost import count_macs, count_parameters
from kawara.analysis.latency import batch_one_latency
from kawara.errors import ConfigError, UnknownNameError
from kawara.models import MODELS, ConvNeXtConfig, RegNetConfig, ResNetConfig, ViTConfig

Match = Literal["params", "macs", "latency"]
TOLERANCE: dict[Match, float] = {"params": 0.02, "macs": 0.02, "latency": 0.10}

_CANDIDATES_TRIED = 6
_LATENCY_REPEATS = 15
_WIDEST = 4.0
"""Largest factor, either way, that a candidate is stretched by."""
_LAST_MAP = 2
"""Least cells a side of the last map of a CNN twin."""


@dataclass(frozen=True)
class Size:
    """What a model costs before it is run."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class Twin:
    """A model of the other kind: the row of `kawara models` it comes from, and the options that make it fit."""

    name: str
    options: dict[str, Any]
    match: Match
    mismatch: float
    """(size of the twin − size wanted) / size wanted, of what was to match."""
    size: Size
    wanted: Size
    config: Any = field(repr=False)


def find_twin(
    name: str,
    match: Match = "params",
    *,
    num_classes: int,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    options: Mapping[str, Any] | None = None,
) -> Twin:
    """Return the CNN (for a CNN: the ViT) that is as large as the model called `name`, with its `options`.

    Raises ConfigError, with the nearest candidate and its mismatch, where none fits within the tolerance.
    """
    if match not in get_args(Match):
        raise UnknownNameError("size to match", match, get_args(Match))
    shape = {"num_classes": num_classes, "image_size": image_size, "channels": channels}
    config = models.model_config(name, **shape, **(options or {}))
    wanted = size_of(config)
    shape["image_size"] = config.image_size
    measured: Callable[[Any], float] = _latency_in(config) if match == "latency" else lambda other: _of(size_of(other), match)
    goal = measured(config)
    nearest: Twin | None = None
    for row, candidate in _candidates(isinstance(config, ViTConfig), wanted, shape)[:_CANDIDATES_TRIED]:
        fitted = _fit(candidate, goal, measured, TOLERANCE[match])
        twin = Twin(row, _changed(candidate, fitted), match, measured(fitted) / goal - 1, size_of(fitted), wanted, fitted)
        if abs(twin.mismatch) <= TOLERANCE[match]:
            return twin
        if nearest is None or abs(twin.mismatch) < abs(nearest.mismatch):
            nearest = twin
    raise ConfigError(
        f"No {'CNN' if isinstance(config, ViTConfig) else 'ViT'} of the same size as {name} was found (by {match}).",
        got=f"nearest: {nearest.name} {nearest.options}, {nearest.mismatch:+.1%}" if nearest else "no candidate for this image size",
        allowed=f"±{TOLERANCE[match]:.0%}",
        remedy="--twin NAME with a model of your choice, or --match params",
    )


@functools.cache
def size_of(config: Any) -> Size:
    """Count parameters and MACs of one image at the configuration's own image size; nothing is computed."""
    with torch.device("meta"):
        model = models.build(config)
    return Size(count_parameters(model), count_macs(model))


def _of(size: Size, match: Match) -> float:
    return float(size.parameters if match == "params" else size.macs)


def _candidates(for_vit: bool, wanted: Size, shape: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return named models of the other kind, the nearest first in parameters and MACs together."""
    found = []
    for name in MODELS:
        row = MODELS[name].config
        if isinstance(row, ViTConfig) == for_vit or getattr(row, "squeeze_reduction", 0):
            continue
        try:
            config = models.model_config(name, **shape)
        except ConfigError:  # does not take images of this size
            continue
        if isinstance(config, ViTConfig):
            if not 1 / (2 * _WIDEST) < 12 * config.depth * config.width**2 / wanted.parameters < 2 * _WIDEST:
                continue  # spares building the giants
        elif min(config.image_size) // config.total_stride < _LAST_MAP:
            continue
        size = size_of(config)
        distance = abs(math.log(size.parameters / wanted.parameters)) + abs(math.log(size.macs / wanted.macs))
        found.append((distance, name, config))
    return [(name, config) for _, name, config in sorted(found, key=lambda entry: entry[0])]


def _fit(config: Any, goal: float, measured: Callable[[Any], float], tolerance: float) -> Any:
    """Return the candidate stretched so that `measured` comes near `goal`: bisection on the factor, in its logarithm.

    A way to stretch that misses by more than `tolerance` is followed by the next.
    """
    best, least = config, abs(measured(config) / goal - 1)
    for stretched in _stretchings(config):
        low, high = 1 / _WIDEST, _WIDEST
        for _ in range(14):
            if least <= tolerance / 4:
                return best
            factor = math.sqrt(low * high)
            trial = stretched(factor)
            mismatch = measured(trial) / goal - 1
            if abs(mismatch) < least:
                best, least = trial, abs(mismatch)
            low, high = (low, factor) if mismatch > 0 else (factor, high)
        if least <= tolerance:
            return best
    return best


def _stretchings(config: Any) -> Iterator[Callable[[float], Any]]:
    """Yield ways to stretch a configuration by a factor, the preferred one first."""
    if isinstance(config, ViTConfig):
        yield lambda factor: _stretch_vit(config, factor)
    elif isinstance(config, RegNetConfig):
        yield lambda factor: _stretch_cnn(config, factor, config.group_width)
    else:
        yield lambda factor: _stretch_cnn(config, factor, 2)
        yield lambda factor: _stretch_cnn(config, factor, 1)
    if not isinstance(config, ViTConfig):
        yield lambda factor: _thinned(_stretch_cnn(config, factor, getattr(config, "group_width", 1)))


def _thinned(config: ResNetConfig | RegNetConfig | ConvNeXtConfig) -> Any:
    """Return a CNN with half the blocks: where time goes by the number of layers, narrow ones are no faster."""
    return dataclasses.replace(config, depths=tuple(max(1, depth // 2) for depth in config.depths))


def _stretch_cnn(config: ResNetConfig | RegNetConfig | ConvNeXtConfig, factor: float, step: int) -> Any:
    step = math.lcm(step, getattr(config, "groups", 1))
    widths = tuple(step * max(1, round(factor * width / step)) for width in config.widths)
    follows = isinstance(config, ResNetConfig) and config.stem_width == config.widths[0]
    return dataclasses.replace(config, widths=widths, **({"stem_width": widths[0]} if follows else {}))


def _stretch_vit(config: ViTConfig, factor: float) -> ViTConfig:
    """Return a ViT whose blocks have `factor` times the weights: as many blocks as fit, the rest by the width of the MLP."""
    matrices = 3 if config.mlp == "swiglu" else 2
    block = config.width * (4 * config.width + matrices * config.mlp_hidden)
    depth = max(1, round(factor * config.depth))
    hidden = (factor * config.depth / depth * block / config.width - 4 * config.width) / matrices
    return dataclasses.replace(config, depth=depth, mlp_hidden=max(config.heads, round(hidden)))


def _changed(row: Any, fitted: Any) -> dict[str, Any]:
    """Return the options in which a fitted configuration differs from its row, as JSON values."""
    names = ("depth", "mlp_hidden") if isinstance(row, ViTConfig) else ("depths", "widths", "stem_width")
    changed = {name: getattr(fitted, name) for name in names if getattr(fitted, name, None) != getattr(row, name, None)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


def _latency_in(config: Any) -> Callable[[Any], float]:
    """Return a function that measures latency in units of that of `config`, in turns with it: the load of the machine cancels."""
    reference = models.build(config).eval()

    def measure(other: Any) -> float:
        own, of_other = batch_one_latency([reference, models.build(other).eval()], repeats=_LATENCY_REPEATS)
        return of_other.p50_ms / own.p50_ms

    return measure
