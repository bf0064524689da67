"""Models by name: `create_model("vit_tiny_16", num_classes=10)`."""

from __future__ import annotations

import dataclasses
from typing import Any

from kawara.errors import UnknownNameError
from kawara.models.convnext import ConvNeXt, ConvNeXtConfig
from kawara.models.interface import Features, ImageModel, Variant
from kawara.models.regnet import RegNet, RegNetConfig
from kawara.models.resnet import ResNet, ResNetConfig
from kawara.models.variants import MODELS
from kawara.models.vit import VisionTransformer, ViTConfig

__all__ = [
    "MODELS",
    "ConvNeXt",
    "ConvNeXtConfig",
    "Features",
    "ImageModel",
    "RegNet",
    "RegNetConfig",
    "ResNet",
    "ResNetConfig",
    "Variant",
    "ViTConfig",
    "VisionTransformer",
    "build",
    "config_type",
    "create_model",
    "family_of",
    "model_config",
    "model_names",
]

_FAMILIES: dict[str, tuple[type, type[ImageModel]]] = {
    "vit": (ViTConfig, VisionTransformer),
    "resnet": (ResNetConfig, ResNet),
    "regnet": (RegNetConfig, RegNet),
    "convnext": (ConvNeXtConfig, ConvNeXt),
}


def model_names() -> list[str]:
    """List the names that `create_model` knows."""
    return list(MODELS)


def model_config(
    name: str, *, num_classes: int = 1000, image_size: int | tuple[int, int] | None = None, channels: int = 3, **overrides: Any
) -> Any:
    """Return the configuration of the model called `name`, changed as asked.

    `image_size` is one side or (height, width) in px; None keeps the row's own. Raises UnknownNameError for a model or
    option that does not exist, ConfigError for values that do not go together.
    """
    config = MODELS[name].config
    known = [field.name for field in dataclasses.fields(config)]
    for option in overrides:
        if option not in known:
            raise UnknownNameError(f"option of the model {name}", option, known)
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    overrides = {option: tuple(value) if isinstance(value, list) else value for option, value in overrides.items()}  # lists come from JSON
    return dataclasses.replace(
        config,
        num_classes=num_classes,
        image_size=config.image_size if image_size is None else tuple(image_size),
        channels=channels,
        **overrides,
    )


def build(config: Any) -> ImageModel:
    """Make a freshly initialised model from its configuration."""
    return _FAMILIES[family_of(config)][1](config)


def create_model(
    name: str, *, num_classes: int = 1000, image_size: int | tuple[int, int] | None = None, channels: int = 3, **overrides: Any
) -> ImageModel:
    """Make a freshly initialised model by name; see `model_config` for the arguments."""
    return build(model_config(name, num_classes=num_classes, image_size=image_size, channels=channels, **overrides))


def family_of(config: Any) -> str:
    """Return the name of the family a configuration belongs to: "vit", "resnet", "regnet" or "convnext"."""
    for family, (known_type, _) in _FAMILIES.items():
        if isinstance(config, known_type):
            return family
    raise UnknownNameError("model family for the configuration", type(config).__name__, [known.__name__ for known, _ in _FAMILIES.values()])


def config_type(family: str) -> type:
    """Return the configuration type of a family. Raises UnknownNameError."""
    if family not in _FAMILIES:
        raise UnknownNameError("model family", family, _FAMILIES)
    return _FAMILIES[family][0]
