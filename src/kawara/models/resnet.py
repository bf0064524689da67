"""Residual networks, with channel and spatial attention on request, for photos and for small images.

ResNet: Deep Residual Learning for Image Recognition, arXiv 1512.03385. Squeeze-and-excitation: arXiv 1709.01507. Spatial attention (SA):
CBAM, arXiv 1807.06521. Aggregated transformations (groups): arXiv 1611.05431.

    maps₀ = pool(ReLU(BN(conv7×7(x))))                for photos: 1/4 of the size
    maps₀ = ReLU(BN(conv3×3(x)))                      for small images (§4.2): the full size
    block(x) = ReLU(shortcut(x) + SA(SE(F(x))))       SE and SA where asked for
    F = BN conv3×3 · ReLU BN conv3×3                  basic
    F = BN conv1×1 · ReLU BN conv3×3 · ReLU BN conv1×1    bottleneck
    y = head(mean over the cells of the last map)

Differs from the paper: a bottleneck halves the map in its 3×3 convolution, not in the first 1×1 (as torchvision and timm do, "v1.5").

Parameter names are those of timm and torchvision (`conv1.weight`, `bn1`, `layer1.0.conv1`, `layer1.0.se.fc1`, `layer2.0.downsample.0`,
`fc`).

Axes: B batch, C channels, H W pixels, h w cells of a map, D channels of the last map, L blocks, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kawara.errors import UnknownNameError
from kawara.layers.convolution import SpatialAttention, SqueezeExcitation, convolution, squeezed_channels
from kawara.layers.residual import SkipConnection
from kawara.models.convnet import ConvNet, ConvNetConfig, require, stage_rates
from kawara.models.interface import Variant, new_head

BlockKind = Literal["basic", "bottleneck"]
Stem = Literal["conv7_pool", "conv3"]
Shortcut = Literal["projection", "padding"]

_CHOICES = {"block": BlockKind, "stem": Stem, "shortcut": Shortcut}


@dataclass(frozen=True)
class ResNetConfig(ConvNetConfig):
    """Everything that fixes the architecture of a ResNet. The defaults are ResNet-50 at 224 px.

    `widths` are the channels of the 3×3 convolutions; a stage of bottlenecks gives `expansion` times as many.
    """

    block: BlockKind = "bottleneck"
    expansion: int = 4
    """Channels that a block gives, for one of its 3×3 convolution; 1 for basic blocks."""
    groups: int = 1
    """Groups of the 3×3 convolutions of bottlenecks (ResNeXt)."""
    stem: Stem = "conv7_pool"
    stem_width: int = 64
    shortcut: Shortcut = "projection"
    """Where the size changes. projection: 1×1 convolution and norm. padding: every second cell, new channels zero (paper: option A)."""
    squeeze_reduction: int = 0
    """r of squeeze-and-excitation: C/r hidden channels, rounded to a multiple of 8; 0: none."""
    spatial_kernel: int = 0
    """Side of the kernel of spatial attention, 7 in CBAM; 0: none."""
    zero_residual: bool = True
    """Whether blocks start as their shortcut; see `initialise`. Off in the rows for small images (docs/lab-log.md)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise UnknownNameError(f"value of {name}", str(getattr(self, name)), get_args(choices))
        for name in ("expansion", "groups", "stem_width"):
            require(getattr(self, name) >= 1, f"The model option {name} must be at least 1.", getattr(self, name))
        require(self.squeeze_reduction >= 0, "The model option squeeze_reduction cannot be negative.", self.squeeze_reduction)
        kernel = self.spatial_kernel
        require(kernel == 0 or (kernel > 0 and kernel % 2 == 1), "The model option spatial_kernel must be odd, or 0 for none.", kernel)
        basic_alone = self.block == "bottleneck" or self.expansion == self.groups == 1
        require(basic_alone, "expansion and groups act only in bottlenecks.", f"expansion {self.expansion}, groups {self.groups}")
        channels = [self.stem_width, *(width * self.expansion for width in self.widths)]
        narrows = self.shortcut == "padding" and channels != sorted(channels)
        require(not narrows, "Shortcuts by padding add channels, so that no stage may be narrower than what is before it.", channels)
        divisible = not any(width % self.groups for width in self.widths)
        require(divisible, "Every width must be a multiple of groups.", f"widths {self.widths}, groups {self.groups}")

    @property
    def num_features(self) -> int:
        """D: the channels of the last map."""
        return self.widths[-1] * self.expansion

    @property
    def total_stride(self) -> int:
        """How many pixels, in each direction, there are to one cell of the last map."""
        return (4 if self.stem == "conv7_pool" else 1) * 2 ** (len(self.depths) - 1)


class ResNet(ConvNet):
    """A ResNet: normalised images (B, C, H, W) of any size to logits (B, K); h = ⌈H / total stride⌉."""

    config: ResNetConfig
    head_names = ("fc",)
    stem_names = ("conv1", "bn1")

    def __init__(self, config: ResNetConfig):
        super().__init__(config)
        kernel, stride = (7, 2) if config.stem == "conv7_pool" else (3, 1)
        self.conv1 = convolution(config.channels, config.stem_width, kernel, stride)
        self.bn1 = nn.BatchNorm2d(config.stem_width)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if config.stem == "conv7_pool" else nn.Identity()
        channels = config.stem_width
        for stage, rates in enumerate(stage_rates(config)):
            blocks = []
            for index, rate in enumerate(rates):
                blocks.append(ResidualBlock(config, channels, config.widths[stage], 2 if stage > 0 and index == 0 else 1, rate))
                channels = config.widths[stage] * config.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = new_head(config.num_features, config.num_classes)
        initialise(self)

    @property
    def block_names(self) -> list[str]:
        return [f"layer{stage + 1}.{index}" for stage, depth in enumerate(self.config.depths) for index in range(depth)]

    def maps(self, image: Tensor) -> Tensor:
        maps = self.maxpool(F.relu(self.bn1(self.conv1(image))))
        for stage in range(len(self.config.depths)):
            maps = self.get_submodule(f"layer{stage + 1}")(maps)
        return maps


class ResidualBlock(nn.Module):
    """Basic block or bottleneck: (B, C, h, w) to (B, C', ⌈h/stride⌉, ⌈w/stride⌉)."""

    def __init__(self, config: ResNetConfig, channels_in: int, width: int, stride: int, stochastic_depth: float):
        super().__init__()
        channels_out = width * config.expansion
        if config.block == "basic":
            self.conv1 = convolution(channels_in, width, kernel=3, stride=stride)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = convolution(width, width, kernel=3)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = self.bn3 = None
        else:
            self.conv1 = convolution(channels_in, width, kernel=1)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = convolution(width, width, kernel=3, stride=stride, groups=config.groups)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = convolution(width, channels_out, kernel=1)
            self.bn3 = nn.BatchNorm2d(channels_out)
        hidden = squeezed_channels(channels_out, config.squeeze_reduction) if config.squeeze_reduction else 0
        self.se = SqueezeExcitation(channels_out, hidden) if hidden else nn.Identity()
        self.spatial = SpatialAttention(config.spatial_kernel) if config.spatial_kernel else nn.Identity()
        self.downsample = _make_shortcut(config.shortcut, channels_in, channels_out, stride)
        self.skip = SkipConnection(stochastic_depth)

    def forward(self, maps: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        if self.conv3 is not None and self.bn3 is not None:
            branch = self.bn3(self.conv3(F.relu(branch)))
        return F.relu(self.skip(self.downsample(maps), self.spatial(self.se(branch))))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm that the branch ends with."""
        return self.bn2 if self.bn3 is None else self.bn3


class PaddedShortcut(nn.Module):
    """Take every `stride`-th cell and add channels of zeros: a shortcut without parameters (arXiv 1512.03385, option A)."""

    def __init__(self, stride: int, new_channels: int):
        super().__init__()
        self.stride = stride
        self.new_channels = new_channels

    def forward(self, maps: Tensor) -> Tensor:
        return F.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, new_channels={self.new_channels}"


def _make_shortcut(kind: Shortcut, channels_in: int, channels_out: int, stride: int) -> nn.Module:
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    if kind == "padding":
        return PaddedShortcut(stride, channels_out - channels_in)
    return nn.Sequential(convolution(channels_in, channels_out, kernel=1, stride=stride), nn.BatchNorm2d(channels_out))


@torch.no_grad()
def initialise(model: ResNet) -> None:
    """Draw every parameter of a ResNet anew, and forget what its norms have seen.

    | tensor                                       | value                                                          |
    |----------------------------------------------|----------------------------------------------------------------|
    | convolutions, those of SE and SA too         | N(√(2/fan_out)), fan_out = C'·k² (He et al., arXiv 1502.01852) |
    | biases of SE and SA                          | 0: gates start around σ(0) = ½                                 |
    | batch norms                                  | γ=1, β=0, mean 0, variance 1                                   |
    | last batch norm of a block, zero_residual    | γ=0: the block starts as its shortcut (arXiv 1706.02677, §5.1) |
    | head                                         | 0: the first loss is ln K                                      |
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    model.reset_head(model.config.num_classes)
    if model.config.zero_residual:
        for name in model.block_names:
            block = model.get_submodule(name)
            assert isinstance(block, ResidualBlock)
            nn.init.zeros_(block.last_norm.weight)


_PHOTOS: dict[str, tuple[BlockKind, tuple[int, ...]]] = {
    # number: block, blocks of each stage (table 1 of the paper)
    "18": ("basic", (2, 2, 2, 2)),
    "34": ("basic", (3, 4, 6, 3)),
    "50": ("bottleneck", (3, 4, 6, 3)),
    "101": ("bottleneck", (3, 4, 23, 3)),
}
_WITH_SMALL_STEM = ("18", "34", "50")
_CIFAR_DEPTHS = {"20": 3, "32": 5, "44": 7, "56": 9}
# Width of the first stage: with 10 classes, each has as many parameters as the ViTs of that name, within 11 %.
_TWINS = {"femto": 16, "pico": 26, "nano": 42, "micro": 64, "mini": 78, "milli": 92}

_SMALL_IMAGES = ResNetConfig(image_size=(32, 32), block="basic", expansion=1, stem="conv3", zero_residual=False)


def _rows() -> list[tuple[str, ResNetConfig, str, str]]:
    """Return name, configuration, description and source of every ResNet, the first without "resnet", the third without "ResNet"."""
    rows = []
    for number, (block, depths) in _PHOTOS.items():
        config = ResNetConfig(block=block, depths=depths, expansion=4 if block == "bottleneck" else 1)
        rows.append((number, config, f"-{number}, 224 px", "arXiv 1512.03385, table 1"))
        if number in _WITH_SMALL_STEM:
            config = replace(config, stem="conv3", image_size=(32, 32), zero_residual=False)
            rows.append((f"{number}_small", config, f"-{number} behind a 3×3 stem, small images", "arXiv 1512.03385, table 1"))
    for number, depth in _CIFAR_DEPTHS.items():
        config = replace(_SMALL_IMAGES, depths=(depth,) * 3, widths=(16, 32, 64), stem_width=16, shortcut="padding")
        rows.append((number, config, f"-{number}, widths 16, 32, 64, small images", "arXiv 1512.03385, §4.2"))
    for name, width in _TWINS.items():
        widths = (width, 2 * width, 4 * width)
        config = replace(_SMALL_IMAGES, depths=(2, 2, 2), widths=widths, stem_width=width)
        text = f"-{name}, as large as vit_{name}: 2 basic blocks in each stage, widths {', '.join(map(str, widths))}, small images"
        rows.append((f"_{name}", config, text, "kawara"))
    return rows


VARIANTS = [Variant(f"resnet{name}", config, f"ResNet{text}", source) for name, config, text, source in _rows()] + [
    Variant(f"seresnet{name}", replace(config, squeeze_reduction=16), f"SE-ResNet{text}", f"{source}; arXiv 1709.01507")
    for name, config, text, source in _rows()
]
