"""What every model of the project can be asked, whatever its family.

ViTs and CNNs give the same record, `Features`, and answer the same questions, so that training, fine-tuning, analysis and export know
no family. A new family is one file: a frozen config dataclass, a class derived from `ImageModel`, and its rows for `variants.py`.

Axes: B batch, C channels, H W pixels, h w feature grid, R prefix tokens, N = R + h·w, D width, K classes.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from kawara.errors import ConfigError


@dataclass(frozen=True)
class Variant:
    """A named model: what `kawara models` lists."""

    name: str
    config: Any
    description: str
    source: str


@dataclass(frozen=True)
class Features:
    """What a backbone makes of a batch of images, before the head.

    A CNN has no prefix: its tokens are the cells of its last feature map, row by row.
    """

    tokens: Tensor
    """(B, N, D), the prefix tokens first, after the final norm where the model has one on its tokens."""
    grid: tuple[int, int]
    """(h, w) of the tokens that are not prefix."""
    num_prefix: int
    """R: class token, distillation token, registers, in this order."""
    pooled: Tensor
    """(B, D): what the head is given."""
    distillation: Tensor | None = None
    """(B, D): what the second head is given, in a model with a distillation token."""

    @classmethod
    def of_map(cls, maps: Tensor, pooled: Tensor) -> Features:
        """Return the record of a CNN from its last map (B, D, h, w)."""
        return cls(maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3]), 0, pooled)

    @property
    def patches(self) -> Tensor:
        """(B, h·w, D): the tokens without the prefix."""
        return self.tokens[:, self.num_prefix :]

    @property
    def feature_map(self) -> Tensor:
        """(B, D, h, w): the tokens without the prefix, as a map."""
        return self.patches.transpose(1, 2).unflatten(2, self.grid)


class ImageModel(nn.Module):
    """A classifier with a backbone: normalised images (B, C, H, W) to logits (B, K)."""

    config: Any
    """The frozen dataclass from which `kawara.models.build` makes this model again. Has at least image_size, channels, num_classes."""
    num_features: int
    """D: the width of `Features.pooled`."""
    num_layers: int
    """The largest value of `layer_index`: that of the head."""
    head_names: ClassVar[tuple[str, ...]] = ("head",)
    """Where the linear layers lie that give the logits, trained alone when the backbone is frozen; a place may be empty (None)."""

    @abstractmethod
    def features(self, image: Tensor) -> Features:
        """Run the backbone on (B, C, H, W)."""

    @abstractmethod
    def apply_heads(self, features: Features) -> tuple[Tensor, ...]:
        """Return the logits (B, K) of each head: one, or class and distillation head. With num_classes=0, the pooled features."""

    @abstractmethod
    def layer_index(self, parameter_name: str) -> int:
        """Return how deep a parameter lies: 0 at the input, i + 1 in block i, `num_layers` after the last block (layer-wise lr decay)."""

    @abstractmethod
    def no_decay(self) -> set[str]:
        """Return the names of the parameters that weight decay must not touch: biases, norms, scales, positions, tokens."""

    def head_parameters(self) -> set[str]:
        """Return the names of the parameters of the heads: what fine-tuning begins anew, and what no matrix optimiser takes."""
        prefixes = tuple(f"{name}." for name in self.head_names)
        return {name for name, _ in self.named_parameters() if name.startswith(prefixes)}

    def reset_head(self, num_classes: int) -> None:
        """Put a new, zero-initialised head for `num_classes` in place of the old one; 0 takes the head away.

        `config.num_classes` follows.
        """
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        like = next(self.parameters())
        for name in self.head_names:
            parent, _, child = name.rpartition(".")
            if getattr(self.get_submodule(parent), child) is not None:
                setattr(self.get_submodule(parent), child, new_head(self.num_features, num_classes).to(like.device, like.dtype))

    def set_image_size(self, image_size: tuple[int, int]) -> None:
        """Make (H, W) px the model's own image size. A family with positions resizes them, by the way of their source."""
        self.config = dataclasses.replace(self.config, image_size=image_size)

    def set_merging(self, r: int, inflection: float = 0.0, *, every: int = 1, proportional: bool = True) -> None:
        """Merge r tokens a block from now on, 0 none. Raises ConfigError where there are no tokens to merge, as in a CNN."""
        if r:
            raise ConfigError("Only the tokens of a ViT can be merged.", got=f"merge {r} for a {type(self).__name__}", remedy="a ViT")

    def freeze(self, num_layers: int | None = None) -> None:
        """Hold the input side of the model still: everything of a layer index below `num_layers`, or with None all but the heads.

        What is frozen gets no gradient and stays in evaluation mode, so that its dropout rests and its batch statistics do not move.
        Raises ConfigError where nothing would be left to train below the head, or nothing would be frozen.
        """
        if num_layers is not None and not 1 <= num_layers <= self.num_layers:
            raise ConfigError(
                "That many blocks cannot be frozen.",
                got=num_layers - 1,
                allowed=f"1 to {self.num_layers - 1} blocks (their stem with them), or backbone: everything but the head",
            )
        heads = self.head_parameters()
        for name, parameter in self.named_parameters():
            if name not in heads if num_layers is None else self.layer_index(name) < num_layers:
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> ImageModel:
        """Set training mode, except in modules that are frozen."""
        super().train(mode)
        if mode:
            _rest_where_frozen(self)
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K): the mean of the heads where there are two, in training as in evaluation."""
        return mean_of_heads(self.forward_heads(image))

    def forward_heads(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each head apart: what a distillation loss is computed from."""
        return self.apply_heads(self.features(image))

    def check_image(self, image: Tensor) -> None:
        """Raise ConfigError unless `image` is (B, C, H, W) with the channels of this model."""
        if image.ndim != 4 or image.shape[1] != self.config.channels:
            raise ConfigError(
                "The model was given images of the wrong shape.",
                got=tuple(image.shape),
                allowed=f"(batch, {self.config.channels}, height, width)",
                remedy="channels= of create_model, or the colour of the preprocessing"
                if image.ndim == 4
                else "image.unsqueeze(0) for one image",
            )


def new_head(width: int, num_classes: int) -> nn.Linear | nn.Identity:
    """Return a linear layer of zeros from `width` to `num_classes`, so that the first loss is ln K; without classes, the identity."""
    if not num_classes:
        return nn.Identity()
    head = nn.Linear(width, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def mean_of_heads(logits: Iterable[Tensor]) -> Tensor:
    """Average the logits of all heads (DeiT's code; the paper adds the two softmax outputs)."""
    first, *others = logits
    if not others:
        return first
    return sum(others, first) / (1 + len(others))


def names_without_decay(model: nn.Module, also: Iterable[str] = ()) -> set[str]:
    """Return the names of all vectors (biases, norms, scales) of a model, and those of `also` that it has."""
    also = set(also)
    return {name for name, parameter in model.named_parameters() if parameter.ndim <= 1 or name in also}


def _rest_where_frozen(module: nn.Module) -> None:
    for child in module.children():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            child.eval()
        else:
            _rest_where_frozen(child)
