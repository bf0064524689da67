"""Which places of a model are looked at, and what an activation found there means.

The blocks of a model are found, not listed: they are the outermost repeated units, whatever the family calls them (`blocks.3` in a ViT,
`layer2.0` in a ResNet, `s3.b4` in a RegNet, `stages.1.blocks.2` in a ConvNeXt). A unit is a module of a class of our own with at least two
weight matrices or kernels that occurs at least twice; a unit in which another kind occurs twice is a stage, not a block.

An activation is either tokens (B, N, D) or a map (B, D, h, w). The two are the same thing in two layouts.

Axes: B batch, D width or channels, h w grid, R prefix tokens, N = R + h·w.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kawara.analysis.evaluation_mode import evaluating
from kawara.errors import ConfigError
from kawara.layers.residual import Block, SkipConnection
from kawara.models import ImageModel

MIN_WEIGHTS_OF_A_UNIT = 2


@dataclass(frozen=True)
class Layout:
    """Where tokens lie: `num_prefix` first, then the cells of a grid (h, w), row by row."""

    grid: tuple[int, int]
    num_prefix: int

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.num_prefix + self.grid[0] * self.grid[1]


def block_places(model: nn.Module) -> list[str]:
    """List the blocks of a model in the order of the forward pass. Raises ConfigError where nothing is repeated."""
    units: dict[type, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        if name and _is_our_own(module) and _num_weights(module) >= MIN_WEIGHTS_OF_A_UNIT:
            units[type(module)].append(name)
    units = {kind: names for kind, names in units.items() if len(names) > 1 or kind is Block}
    stages = {kind for kind, names in units.items() if any(_holds_two(name, units, kind) for name in names)}
    places = {name for kind, names in units.items() if kind not in stages for name in names}
    outermost = [name for name in _ordered(model) if name in places and not any(_is_inside(name, other) for other in places)]
    if not outermost:
        raise ConfigError("This model has no repeated blocks.", got=type(model).__name__, remedy="name the layers to look at")
    return outermost


def representation_layers(model: nn.Module, *, norms: bool = False) -> list[str]:
    """List the layers whose representations are compared, in the order of the forward pass.

    Of a transformer block: its attention branch, its MLP branch, its output; with `norms` the norm before each branch too. Of any
    other block: its output.
    """
    layers = []
    for place in block_places(model):
        if isinstance(model.get_submodule(place), Block):
            parts = ("norm1", "attn", "norm2", "mlp") if norms else ("attn", "mlp")
            layers += [f"{place}.{part}" for part in parts]
        layers.append(place)
    return layers


def depths(model: nn.Module, count: int = 4) -> list[str]:
    """Return up to `count` blocks spread evenly from the first to the last."""
    blocks = block_places(model)
    chosen = sorted({round(index * (len(blocks) - 1) / max(1, count - 1)) for index in range(count)})
    return [blocks[index] for index in chosen]


def skip_places(model: nn.Module) -> list[str]:
    """List the skip connections of a model. Raises ConfigError where it has none that can be tapped."""
    places = [name for name, module in model.named_modules() if isinstance(module, SkipConnection)]
    if not places:
        raise ConfigError("This model has no skip connections that could be read or taken away.", got=type(model).__name__)
    return places


@torch.no_grad()
def token_layout(model: ImageModel, image: Tensor) -> Layout:
    """Return the layout of the tokens of `model` for images (B, C, H, W) of this size; runs it on the first one."""
    with evaluating(model):
        features = model.features(image[:1])
    return Layout(features.grid, features.num_prefix)


def as_tokens(activation: Tensor) -> Tensor:
    """Return (B, N, D) of tokens, or of a map (B, D, h, w) whose cells become tokens row by row."""
    return activation.flatten(2).transpose(1, 2) if activation.ndim == 4 else activation


def as_map(activation: Tensor, layout: Layout) -> Tensor:
    """Return (B, D, h, w): a map as it is, tokens (B, N, D) without their prefix. Raises ConfigError for tokens off the grid."""
    if activation.ndim == 4:
        return activation
    return activation[:, layout_of(activation, layout).num_prefix :].transpose(1, 2).unflatten(2, layout.grid)


def layout_of(activation: Tensor, layout: Layout) -> Layout:
    """Return the layout of one activation: its own grid for a map, that of the model for tokens. Raises ConfigError where neither fits."""
    if activation.ndim == 4:
        return Layout((activation.shape[2], activation.shape[3]), 0)
    if activation.ndim != 3 or activation.shape[1] != layout.num_tokens:
        h, w = layout.grid
        raise ConfigError(
            "These activations are not on the grid of the model.",
            got=f"shape {tuple(activation.shape)}",
            allowed=f"(batch, {layout.num_prefix} + {h}·{w}, width) or (batch, width, height, width)",
            remedy="model.set_merging(0), where tokens are merged",
        )
    return layout


def _is_our_own(module: nn.Module) -> bool:
    return not type(module).__module__.startswith("torch.")


def _num_weights(module: nn.Module) -> int:
    return sum(parameter.ndim >= 2 for parameter in module.parameters())


def _holds_two(place: str, units: dict[type, list[str]], of_kind: type) -> bool:
    """Return whether another kind of unit occurs at least twice inside `place`."""
    return any(sum(_is_inside(name, place) for name in names) > 1 for kind, names in units.items() if kind is not of_kind)


def _is_inside(place: str, outer: str) -> bool:
    return place.startswith(f"{outer}.")


def _ordered(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules()]
