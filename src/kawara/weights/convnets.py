"""ResNet, SE-ResNet, ResNeXt, RegNet and ConvNeXt as timm and torchvision write them.

kawara's names are timm's. torchvision names its ResNets alike, the other two in its own way:

    trunk_output.block2.block2-3.f.a.0        s2.b4.conv1.conv                      a, b, c: conv1, conv2, conv3; 0, 1: conv, bn
    trunk_output.block2.block2-0.proj.1       s2.b1.downsample.bn
    features.0.0, features.0.1                stem.0, stem.1
    features.{2s+1}.{i}.block.{0, 2, 3, 5}    stages.{s}.blocks.{i}.{conv_dw, norm, mlp.fc1, mlp.fc2}
    features.{2s+1}.{i}.layer_scale           stages.{s}.blocks.{i}.gamma, without its two axes of length 1
    features.{2s}.{0, 1}                      stages.{s}.downsample.{0, 1}
    classifier.{0, 2}                         head.{norm, fc}

The architecture is read off the shapes (weights/convnet_shapes.py). A file says nothing of the pictures it was trained on, unless a timm
config.json lies beside it; what is assumed then is in the notes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kawara import models
from kawara.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing
from kawara.errors import ConfigError, ModelFileError
from kawara.models import MODELS, ConvNeXtConfig, RegNetConfig, ResNetConfig
from kawara.models.convnet import ConvNetConfig
from kawara.weights.convnet_shapes import convnext_config, regnet_config, resnet_config
from kawara.weights.foreign import Fate, Foreign, Format, Hints, RawCheckpoint

# A name that only this family has in this layout, and how its configuration is read off the shapes under kawara's names.
_TIMM = {
    "layer1.0.conv1.weight": resnet_config,
    "s1.b1.conv1.conv.weight": regnet_config,
    "stages.0.blocks.0.conv_dw.weight": convnext_config,
}
_TORCHVISION = {
    "trunk_output.block1.block1-0.f.a.0.weight": regnet_config,
    "features.1.0.block.0.weight": convnext_config,
}

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

# Fields that make no other architecture.
_FREE = ("image_size", "channels", "num_classes", "stochastic_depth", "dropout", "zero_residual")

_SMALLEST_PHOTO_PX = 96

_UNSUPPORTED = "a plain ResNet, SE-ResNet, ResNeXt, RegNet or ConvNeXt; variants with other stems, norms or attention are not supported"


def read_timm(raw: RawCheckpoint, hints: Hints) -> Foreign:
    """Read a checkpoint with timm's names. Raises ModelFileError for a tensor that cannot be explained or is missing."""
    return _read(raw, hints, "timm", _TIMM, lambda name: name)


def read_torchvision(raw: RawCheckpoint, hints: Hints) -> Foreign:
    """Read a RegNet or ConvNeXt with torchvision's names. Raises ModelFileError for a tensor that cannot be explained or is missing."""
    return _read(raw, hints, "torchvision", _TORCHVISION, kawara_name)


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


TIMM_CONVNETS = Format("timm", lambda raw: any(name in raw.tensors for name in _TIMM), read_timm)
TORCHVISION_CONVNETS = Format("torchvision", lambda raw: any(name in raw.tensors for name in _TORCHVISION), read_torchvision)
FORMATS = (TIMM_CONVNETS, TORCHVISION_CONVNETS)


def _read(
    raw: RawCheckpoint,
    hints: Hints,
    layout: Literal["timm", "torchvision"],
    families: Mapping[str, Callable[[Mapping[str, tuple[int, ...]]], ConvNetConfig]],
    rename: Callable[[str], str],
) -> Foreign:
    if hints.heads is not None:
        raise ConfigError("A CNN has no attention heads.", got=f"heads {hints.heads}", remedy="leave the number of heads out")
    sources = {rename(name): name for name in raw.tensors}
    if len(sources) != len(raw.tensors):
        raise ModelFileError(f"{raw.path}: two tensors have the same place in the model.")
    shapes = {name: tuple(raw.tensors[source].shape) for name, source in sources.items()}
    read_config = next(reader for name, reader in families.items() if name in raw.tensors)
    try:
        config = read_config(shapes)
        with torch.device("meta"):
            model = models.build(config)
        state, fates = _take(raw, sources, model)
        preprocessing, notes = _preprocessing(raw, hints, config, layout)
        config = dataclasses.replace(config, image_size=preprocessing.image_size)
    except ConfigError as error:
        raise ModelFileError(f"{raw.path} holds no CNN that kawara can build.", got=error) from None
    if isinstance(config, ResNetConfig) and config.stem == "conv3":
        notes.append("A file does not show whether pooling follows the 3×3 stem: none was assumed.")
    return Foreign(
        layout, _name(raw, config), config, state, fates, preprocessing, _class_names(raw, config.num_classes), notes
    )  # fmt: skip


def _take(raw: RawCheckpoint, sources: Mapping[str, str], model: nn.Module) -> tuple[dict[str, Tensor], list[Fate]]:
    """Return the model's state, and what became of every tensor."""
    wanted = model.state_dict()
    state: dict[str, Tensor] = {}
    fates = []
    for name, source in sources.items():
        tensor = raw.tensors[source]
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        if name not in wanted:
            raise ModelFileError(f"{raw.path}: the tensor {source} has no place in the model.", got=shape, remedy=_UNSUPPORTED)
        if _long_axes(shape) != _long_axes(wanted[name].shape) or tensor.is_floating_point() != wanted[name].is_floating_point():
            allowed = tuple(wanted[name].shape)
            raise ModelFileError(
                f"{raw.path}: the tensor {source} is not what the model has there.", got=f"{dtype} {shape}", allowed=allowed
            )
        hows = [f"from {dtype}"] if tensor.dtype != wanted[name].dtype else []
        hows += [f"from shape {shape}"] if shape != wanted[name].shape else []
        state[name] = tensor.to(wanted[name].dtype).reshape(wanted[name].shape).contiguous()
        fates.append(Fate("used", source, name, ", ".join(hows) or "as it is"))
    for name in wanted:
        if name not in state:
            if not name.endswith("num_batches_tracked"):
                raise ModelFileError(f"{raw.path}: the tensor {name} is missing.", remedy=f"the whole file, or {_UNSUPPORTED}")
            state[name] = torch.tensor(0)
            fates.append(Fate("missing", None, name, "0: it counts batches of training and changes no answer"))
    return state, fates


def _long_axes(shape: Sequence[int]) -> list[int]:
    return [length for length in shape if length != 1]


def _preprocessing(
    raw: RawCheckpoint, hints: Hints, config: ConvNetConfig, layout: Literal["timm", "torchvision"]
) -> tuple[Preprocessing, list[str]]:
    """Return what timm's config.json says, or what is usual for the family, with a note on what was assumed."""
    channels = config.channels
    if channels not in (1, 3):
        raise ConfigError("Images have one channel (grey) or three (colour).", got=f"{channels} channels")
    written = raw.config.get("pretrained_cfg", raw.config)
    written = written if isinstance(written, Mapping) else {}
    assumed = []

    def setting(name: str, fits: Callable[[Any], bool], usual: Any) -> Any:
        if fits(written.get(name)):
            return written[name]
        assumed.append(f"{name} {usual}")
        return usual

    def is_colour(value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) == channels and all(isinstance(part, float | int) for part in value)

    def is_size(value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(part, int) and 0 < part < 10_000 for part in value)

    crop_fraction, interpolation = _usual_crop(config, layout)
    # Grey images have the mean of the three colours.
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.449,), (0.226,))
    if hints.normalisation == "half":
        mean, std = HALF[:channels], HALF[:channels]
    elif hints.normalisation is None:
        mean, std = setting("mean", is_colour, mean), setting("std", is_colour, std)
    preprocessing = Preprocessing(
        image_size=setting("input_size", is_size, (channels, *config.image_size))[1:],
        color="grey" if channels == 1 else "rgb",
        crop_fraction=setting("crop_pct", lambda value: isinstance(value, float | int) and 0 < value <= 1, crop_fraction),
        interpolation=setting("interpolation", lambda value: value in ("bicubic", "bilinear"), interpolation),
        mean=mean,
        std=std,
    )
    return preprocessing, [f"Nothing says how images were prepared; assumed: {', '.join(assumed)}."] if assumed else []


def _usual_crop(config: ConvNetConfig, layout: Literal["timm", "torchvision"]) -> tuple[float, Interpolation]:
    """Return crop fraction and interpolation of most of the public weights of a family.

    timm's own ResNets have 0.95 and bicubic, but come with a config.json; a ResNet without one is taken for torchvision's.
    """
    if min(config.image_size) < _SMALLEST_PHOTO_PX:
        return 1.0, "bilinear"
    if isinstance(config, ResNetConfig):
        return 0.875, "bilinear"
    if layout == "timm":
        return (0.95 if isinstance(config, RegNetConfig) else 0.875), "bicubic"
    if isinstance(config, ConvNeXtConfig):
        resized_px = 236 if sum(config.depths) == 18 else 230 if config.widths[0] == 96 else 232  # tiny, small, base and large
        return 224 / resized_px, "bilinear"
    return 0.875, "bilinear"


def _name(raw: RawCheckpoint, config: ConvNetConfig) -> str:
    """Return the source's own name, else that of kawara's row with the same architecture, else the family."""
    written = raw.config.get("architecture")
    if isinstance(written, str) and re.fullmatch(r"[\w.-]{1,100}", written):
        return written
    for name in MODELS:
        known = MODELS[name].config
        if type(known) is type(config) and _architecture(known) == _architecture(config):
            return name
    return models.family_of(config)


def _architecture(config: ConvNetConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in _FREE}


def _class_names(raw: RawCheckpoint, num_classes: int) -> tuple[str, ...]:
    written = raw.config.get("label_names")
    if isinstance(written, list | tuple) and len(written) == num_classes and all(isinstance(name, str) for name in written):
        return tuple(written)
    return tuple(str(index) for index in range(num_classes))
