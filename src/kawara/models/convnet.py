"""What the CNN families share: a stem, stages of blocks that halve the map, the mean over its cells, one linear head.

    maps   = stage_S( … stage_1(stem(image)))         (B, D, h, w), channels last in memory (layers/convolution.py)
    pooled = mean over h, w of maps                   (B, D)
    logits = head(pooled)                             (B, K)

A stage is a row of residual blocks; the first one changes width and size. Stochastic depth and dropout act as in the ViT: each block has
its own rate, growing linearly from 0; dropout is on what the head is given.

Axes: B batch, C channels, H W pixels, h w cells of the last map, D its channels, L blocks, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kawara.errors import ConfigError
from kawara.layers.residual import stochastic_depth_rates
from kawara.models.interface import Features, ImageModel, names_without_decay


@dataclass(frozen=True)
class ConvNetConfig:
    """What every CNN can be told. Raises ConfigError where values do not go together."""

    image_size: tuple[int, int] = (224, 224)
    """(H, W) it is meant for; nothing in the weights depends on it."""
    channels: int = 3
    num_classes: int = 1000
    """K; 0 for a backbone without head."""
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage; L is their sum."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each stage."""
    stochastic_depth: float = 0.0
    """Rate of the last block; earlier ones have less, linearly from 0."""
    dropout: float = 0.0
    """On the pooled features, before the head."""

    def __post_init__(self) -> None:
        require(len(self.image_size) == 2 and min(self.image_size) >= 1, "The image size is two numbers of pixels.", self.image_size)
        require(self.channels >= 1, "The model option channels must be at least 1.", self.channels)
        require(self.num_classes >= 0, "The model option num_classes cannot be negative.", self.num_classes)
        for name in ("stochastic_depth", "dropout"):
            require(0.0 <= getattr(self, name) < 1.0, f"The model option {name} is a probability below 1.", getattr(self, name))
        require(
            len(self.depths) == len(self.widths) >= 1,
            "depths and widths have one number for each stage.",
            f"depths {self.depths}, widths {self.widths}",
        )
        require(min(*self.depths, *self.widths) >= 1, "A stage has at least one block and one channel.", f"{self.depths}, {self.widths}")

    @property
    def num_features(self) -> int:
        """D: the channels of the last map."""
        return self.widths[-1]

    @property
    def total_stride(self) -> int:
        """How many pixels, in each direction, there are to one cell of the last map."""
        raise NotImplementedError


class ConvNet(ImageModel):
    """A CNN: normalised images (B, C, H, W) of any size to logits (B, K)."""

    config: Any
    """A `ConvNetConfig`."""
    stem_names: ClassVar[tuple[str, ...]] = ("stem",)

    def __init__(self, config: ConvNetConfig):
        super().__init__()
        self.config = config
        self.num_features = config.num_features
        self.num_layers = sum(config.depths) + 1
        self.dropout = nn.Dropout(config.dropout)

    @property
    @abstractmethod
    def block_names(self) -> list[str]:
        """Where the residual blocks lie, first to last: places for `layers/taps.py`."""

    @abstractmethod
    def maps(self, image: Tensor) -> Tensor:
        """Run stem and stages: (B, C, H, W) to (B, D, h, w)."""

    def pool(self, maps: Tensor) -> Tensor:
        """Return what the head is given, (B, D)."""
        return maps.mean(dim=(2, 3))

    def features(self, image: Tensor) -> Features:
        """Run everything but the head on (B, C, H, W). Raises ConfigError for images this model cannot take."""
        self.check_image(image)
        maps = self.maps(image.contiguous(memory_format=torch.channels_last))
        return Features.of_map(maps, self.pool(maps))

    def apply_heads(self, features: Features) -> tuple[Tensor, ...]:
        head = self.get_submodule(self.head_names[0])
        return (head(self.dropout(features.pooled)),)

    def layer_index(self, parameter_name: str) -> int:
        """Return 0 for the stem, i + 1 for block i, counted through all stages, L + 1 for the rest."""
        if parameter_name.startswith(tuple(f"{name}." for name in self.stem_names)):
            return 0
        for index, name in enumerate(self.block_names, start=1):
            if parameter_name.startswith(f"{name}."):
                return index
        return self.num_layers

    def no_decay(self) -> set[str]:
        return names_without_decay(self)


def stage_rates(config: ConvNetConfig) -> list[list[float]]:
    """Return the stochastic depth of every block, one list for each stage."""
    rates = iter(stochastic_depth_rates(config.stochastic_depth, sum(config.depths)))
    return [[next(rates) for _ in range(depth)] for depth in config.depths]


def require(holds: bool, what: str, got: object, remedy: str | None = None) -> None:
    """Raise ConfigError unless a condition of a configuration holds."""
    if not holds:
        raise ConfigError(what, got=got, remedy=remedy)
