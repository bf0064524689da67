"""ResNet, SE-ResNet, ResNeXt, RegNet and ConvNeXt as timm and torchvision write them.

kawara's names are timm's. torchvision names its ResNets alike, the other two in its own way:

    trunk_output.block2.block2-3.f.a.0        s2.b4.conv1.conv                      a, b, c: conv1, conv2, conv3; 0, 1: conv, bn
    trunk_output.block2.block2-0.proj.1       s2.b1.downsample.bn
    features.0.0, features.0.1                stem.0, stem.1
    features.{2s+1}.{i}.block.{0, 2, 3, 5}    stages.{s}.blocks.{i}.{conv_dw, norm, mlp.fc1, mlp.fc2}
    features.{2s+1}.{i}.layer_scale           stages.{s}.blocks.{i}.gamma, without its two axes of length 1
    features.{2s}.{0, 1}                      stages.{s}.downsample.{0, 1}
    classifier.{0, 2}                         head.{norm, fc}

The architecture is read off the shapes (weights/convnet_shapes.py). How images are prepared no tensor says: a timm config.json beside the
file does, else it is assumed, with a note:

    timm         ResNet     0.875, bilinear    as torchvision's; timm's own weights come with a config.json
                 RegNet     0.95, bicubic      timm `regnet.py`, `_cfg`
                 ConvNeXt   0.875, bicubic     timm `convnext.py`, `_cfg`
    torchvision  RegNet     0.875, bilinear    IMAGENET1K_V1
                 ConvNeXt   224 of 236 (tiny), 230 (small), 232 px (base, large), bilinear
    any          images below 96 px            whole, bilinear
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

import torch

from kawara import models
from kawara.errors import ConfigError, ModelFileError
from kawara.models import MODELS, ConvNeXtConfig, RegNetConfig, ResNetConfig
from kawara.models.convnet import ConvNetConfig
from kawara.weights.convnet_shapes import convnext_config, regnet_config, resnet_config
from kawara.weights.foreign import Foreign, Format, Hints, RawCheckpoint
from kawara.weights.ledger import Ledger
from kawara.weights.timm.origin import Origin, find_preprocessing
from kawara.weights.timm.sidecar import Sidecar

Layout = Literal["timm", "torchvision"]

# A name that only this family has, and how its configuration is read off the shapes.
_FAMILIES = {
    "layer1.0.conv1.weight": resnet_config,
    "s1.b1.conv1.conv.weight": regnet_config,
    "stages.0.blocks.0.conv_dw.weight": convnext_config,
}
_IN_TORCHVISION = ("trunk_output.block1.block1-0.f.a.0.weight", "features.1.0.block.0.weight")

_REGNET_PARTS = {
    "f.a.0": "conv1.conv",
    "f.a.1": "conv1.bn",
    "f.b.0": "conv2.conv",
    "f.b.1": "conv2.bn",
    "f.c.0": "conv3.conv",
    "f.c.1": "conv3.bn",
    "f.se.fc1": "se.fc1",
    "f.se.fc2": "se.fc2",
    "proj.0": "downsample.conv",
    "proj.1": "downsample.bn",
}
_CONVNEXT_PARTS = {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2"}
_ENDS = {"stem.0": "stem.conv", "stem.1": "stem.bn", "fc": "head.fc", "classifier.0": "head.norm", "classifier.2": "head.fc"}

_FREE = ("image_size", "channels", "num_classes", "stochastic_depth", "dropout", "zero_residual")
"""Fields that make no other architecture."""
_VARIANTS = {
    "conv1.0.": "a stem of several convolutions (ResNet-C, -D, -T)",
    ".se.conv.": "efficient channel attention (ECA)",
    ".grn.": "global response normalisation (ConvNeXt V2)",
    "norm_pre.": "a norm before pooling",
    "final_conv.": "a convolution after the last stage (RegNetZ)",
}
_SMALLEST_PHOTO_PX = 96


def read_timm(checkpoint: RawCheckpoint, hints: Hints) -> Foreign:
    """Understand a checkpoint with timm's names. Raises ModelFileError: see `kawara.weights.foreign.Format`."""
    return _read(checkpoint, hints, "timm", lambda name: name)


def read_torchvision(checkpoint: RawCheckpoint, hints: Hints) -> Foreign:
    """Understand a RegNet or ConvNeXt with torchvision's names. Raises ModelFileError: see `kawara.weights.foreign.Format`."""
    return _read(checkpoint, hints, "torchvision", kawara_name)


def kawara_name(name: str) -> str:
    """Return kawara's name for one of torchvision's; a name that is not known comes back as it is."""
    module, _, leaf = name.rpartition(".")
    if found := re.fullmatch(r"trunk_output\.block(\d{1,4})\.block\1-(\d{1,4})\.(.+)", module):
        stage, block, part = found.groups()
        return f"s{stage}.b{int(block) + 1}.{_REGNET_PARTS.get(part, part)}.{leaf}"
    if found := re.fullmatch(r"features\.(\d{1,4})\.(\d{1,4})", module):
        place, index = int(found[1]), int(found[2])
        if leaf == "layer_scale":
            return f"stages.{place // 2}.blocks.{index}.gamma"
        return f"stem.{index}.{leaf}" if place == 0 else f"stages.{place // 2}.downsample.{index}.{leaf}"
    if found := re.fullmatch(r"features\.(\d{1,4})\.(\d{1,4})\.(block\.\d)", module):
        return f"stages.{int(found[1]) // 2}.blocks.{found[2]}.{_CONVNEXT_PARTS.get(found[3], found[3])}.{leaf}"
    return f"{_ENDS[module]}.{leaf}" if module in _ENDS else name


TIMM_CONVNETS = Format("timm", lambda checkpoint: any(name in checkpoint.tensors for name in _FAMILIES), read_timm)
TORCHVISION_CONVNETS = Format(
    "torchvision", lambda checkpoint: any(name in checkpoint.tensors for name in _IN_TORCHVISION), read_torchvision
)
FORMATS = (TIMM_CONVNETS, TORCHVISION_CONVNETS)


def _read(checkpoint: RawCheckpoint, hints: Hints, layout: Layout, rename: Callable[[str], str]) -> Foreign:
    if hints.heads is not None:
        raise ConfigError("A CNN has no attention heads.", got=f"heads {hints.heads}", remedy="leave the number of heads out")
    for part, what in _VARIANTS.items():
        if found := next((name for name in checkpoint.tensors if part in name), None):
            raise ModelFileError(f"{checkpoint.path} has {what}, which kawara's CNNs do not have.", got=found)
    ledger, said, notes = Ledger(checkpoint, rename), Sidecar(checkpoint), list[str]()
    try:
        config = _config({name: tuple(ledger.tensor(name).shape) for name in ledger}, said)
        with torch.device("meta"):
            wanted = models.build(config).state_dict()
    except ConfigError as error:
        raise ModelFileError(f"{checkpoint.path} is a CNN that kawara cannot build.", got=error) from None
    for name, tensor in wanted.items():
        if name.endswith(".num_batches_tracked"):
            ledger.count(name)
        elif name in ledger and ledger.tensor(name).shape != tensor.shape:
            _use_without_unit_axes(ledger, name, tensor.shape)
    ledger.close({name: tuple(tensor.shape) for name, tensor in wanted.items()})
    if isinstance(config, ResNetConfig) and config.stem == "conv3":
        notes.append("A file does not show whether pooling follows the 3×3 stem: none is assumed.")
    return Foreign(
        format=layout,
        name=said.text(said.ours, "name") or said.architecture or _variant_name(config),
        config=config,
        state=ledger.state,
        fates=ledger.fates,
        preprocessing=find_preprocessing(said, _origin(config, layout), hints, config.image_size, config.channels, notes),
        class_names=said.class_names(config.num_classes, notes),
        notes=notes,
    )


def _config(shapes: dict[str, tuple[int, ...]], said: Sidecar) -> ConvNetConfig:
    config = next(read(shapes) for name, read in _FAMILIES.items() if name in shapes)
    return dataclasses.replace(config, image_size=said.input_size() or config.image_size)


def _use_without_unit_axes(ledger: Ledger, name: str, shape: torch.Size) -> None:
    """Use a tensor that differs from `shape` in axes of length 1 alone: a matrix kept as a 1×1 convolution, a vector kept as a map."""
    found = ledger.tensor(name).shape
    if [length for length in found if length != 1] == [length for length in shape if length != 1]:
        ledger.use(name, how=f"reshaped from {tuple(found)}", join=lambda parts: parts[0].reshape(shape))


def _origin(config: ConvNetConfig, layout: Layout) -> Origin:
    """Return how images are prepared for most of the public weights of a family."""
    if min(config.image_size) < _SMALLEST_PHOTO_PX:
        return Origin("small", "small images", True, 1.0, 1.0, interpolation="bilinear")
    if isinstance(config, ResNetConfig):
        return Origin("resnet", "torchvision's ResNets", True, 0.875, 1.0, interpolation="bilinear")
    family = "RegNets" if isinstance(config, RegNetConfig) else "ConvNeXts"
    if layout == "timm":
        return Origin("timm", f"timm's {family}", True, 0.95 if isinstance(config, RegNetConfig) else 0.875, 1.0)
    crop_fraction = 0.875
    if isinstance(config, ConvNeXtConfig):
        crop_fraction = 224 / (236 if sum(config.depths) == 18 else 230 if config.widths[0] == 96 else 232)
    return Origin("torchvision", f"torchvision's {family}", True, crop_fraction, 1.0, interpolation="bilinear")


def _variant_name(config: ConvNetConfig) -> str:
    """Return kawara's own name for an architecture, that of the family where it has none."""
    for name in MODELS:
        known = MODELS[name].config
        if type(known) is type(config) and _architecture(known) == _architecture(config):
            return name
    return models.family_of(config)


def _architecture(config: ConvNetConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in _FREE}
