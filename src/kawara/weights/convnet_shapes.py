"""Which CNN a checkpoint holds: its configuration, read off the shapes of its tensors under kawara's (timm's) names.

Shapes show block, stages, widths, groups, squeeze-and-excitation and classes. They do not show pooling, activations and the constants of
norms: those are the families' usual ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kawara.errors import ConfigError
from kawara.layers.convolution import squeezed_channels
from kawara.models import ConvNeXtConfig, RegNetConfig, ResNetConfig

Shapes = Mapping[str, tuple[int, ...]]

_REDUCTIONS = (16, 8, 4, 2, 1, 32, 64)  # the usual one first: rounding lets several fit narrow networks


def resnet_config(shapes: Shapes) -> ResNetConfig:
    """Return the configuration of a ResNet. Raises ConfigError for shapes that no ResNet has."""
    depths = _depths(shapes, r"layer(\d{1,4})\.(\d{1,4})\.", first_stage=1, first_block=0)
    stem_width, channels, kernel, _ = _convolution(shapes, "conv1.weight")
    if kernel not in (7, 3):
        raise ConfigError("A ResNet begins with a 7×7 or a 3×3 convolution.", got=f"{kernel}×{kernel}")
    stem = "conv7_pool" if kernel == 7 else "conv3"
    firsts = [_convolution(shapes, f"layer{stage}.0.conv2.weight") for stage in range(1, len(depths) + 1)]
    widths = tuple(first[0] for first in firsts)
    bottleneck = "layer1.0.conv3.weight" in shapes
    expansion = _convolution(shapes, "layer1.0.conv3.weight")[0] // widths[0] if bottleneck else 1
    squeeze_reduction = 0
    if "layer1.0.se.fc1.weight" in shapes:
        gates = [_convolution(shapes, f"layer{stage}.0.se.fc1.weight")[:2] for stage in range(1, len(depths) + 1)]
        fitting = [r for r in _REDUCTIONS if all(squeezed_channels(wide, r) == hidden for hidden, wide in gates)]
        if not fitting:
            raise ConfigError("The hidden channels of squeeze-and-excitation follow no known reduction.", got=gates)
        squeeze_reduction = fitting[0]
    projects = stem == "conv7_pool" or any(".downsample." in name for name in shapes)
    return ResNetConfig(
        image_size=(224, 224) if stem == "conv7_pool" else (32, 32),
        channels=channels,
        num_classes=_num_classes(shapes, "fc.weight"),
        depths=depths,
        widths=widths,
        block="bottleneck" if bottleneck else "basic",
        expansion=expansion,
        groups=widths[0] // firsts[0][1],
        stem=stem,
        stem_width=stem_width,
        shortcut="projection" if projects else "padding",
        squeeze_reduction=squeeze_reduction,
    )


def regnet_config(shapes: Shapes) -> RegNetConfig:
    """Return the configuration of a RegNet. Raises ConfigError for shapes that no RegNet has."""
    depths = _depths(shapes, r"s(\d{1,4})\.b(\d{1,4})\.", first_stage=1, first_block=1)
    stem_width, channels, _, _ = _convolution(shapes, "stem.conv.weight")
    firsts = [_convolution(shapes, f"s{stage}.b1.conv2.conv.weight") for stage in range(1, len(depths) + 1)]
    squeeze_ratio = 0.0
    if "s1.b1.se.fc1.weight" in shapes:
        hidden = _convolution(shapes, "s1.b1.se.fc1.weight")[0]
        squeeze_ratio = 0.25 if hidden == round(0.25 * stem_width) else hidden / stem_width
    return RegNetConfig(
        channels=channels,
        num_classes=_num_classes(shapes, "head.fc.weight"),
        depths=depths,
        widths=tuple(first[0] for first in firsts),
        group_width=max(first[1] for first in firsts),
        squeeze_ratio=squeeze_ratio,
        stem_width=stem_width,
    )


def convnext_config(shapes: Shapes) -> ConvNeXtConfig:
    """Return the configuration of a ConvNeXt. Raises ConfigError for shapes that no ConvNeXt has."""
    depths = _depths(shapes, r"stages\.(\d{1,4})\.blocks\.(\d{1,4})\.", first_stage=0, first_block=0)
    _, channels, kernel, _ = _convolution(shapes, "stem.0.weight")
    firsts = [_convolution(shapes, f"stages.{stage}.blocks.0.conv_dw.weight") for stage in range(len(depths))]
    stem_stride = 1 if kernel == 3 else kernel
    side = 224 if stem_stride >= 4 else 32
    return ConvNeXtConfig(
        image_size=(side, side),
        channels=channels,
        num_classes=_num_classes(shapes, "head.fc.weight"),
        depths=depths,
        widths=tuple(first[0] for first in firsts),
        stem_stride=stem_stride,
        kernel_size=firsts[0][2],
        layer_scale=1e-6 if "stages.0.blocks.0.gamma" in shapes else None,
    )


def _depths(shapes: Shapes, pattern: str, first_stage: int, first_block: int) -> tuple[int, ...]:
    """Return the number of blocks of each stage. Raises ConfigError where a stage or block is left out."""
    found = {(int(match[1]), int(match[2])) for name in shapes if (match := re.match(pattern, name))}
    num_stages = len({stage for stage, _ in found})
    depths = tuple(sum(stage == wanted for stage, _ in found) for wanted in range(first_stage, first_stage + num_stages))
    complete = {(first_stage + index, first_block + block) for index, depth in enumerate(depths) for block in range(depth)}
    if found != complete:
        raise ConfigError("The blocks of the checkpoint are not numbered without gaps.", got=sorted(found ^ complete)[:5])
    return depths


def _convolution(shapes: Shapes, name: str) -> tuple[int, int, int, int]:
    """Return (C', C/groups, k, k). Raises ConfigError unless the tensor is there and is such."""
    shape = shapes.get(name, ())
    if len(shape) != 4 or min(shape) < 1 or shape[2] != shape[3]:
        raise ConfigError(f"The tensor {name} should be a convolution.", got=shape or "no such tensor", allowed="(C', C, k, k)")
    return shape[0], shape[1], shape[2], shape[3]


def _num_classes(shapes: Shapes, name: str) -> int:
    return shapes[name][0] if shapes.get(name) else 0
