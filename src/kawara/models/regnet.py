"""RegNetY: networks whose widths follow a rule with four numbers.

Designing Network Design Spaces, arXiv 2003.13678, eqs. 2–4, appendix: the width of block j is a straight line, rounded so that whole stages
share one width.

    u_j = w₀ + w_a j,   j = 0 … d − 1
    s_j = round(log(u_j / w₀) / log w_m)
    w_j = w₀ w_m^{s_j},   rounded to a multiple of 8, then of the group width g

    block(x) = ReLU(shortcut(x) + BN conv1×1 · SE · ReLU BN conv3×3 in groups of g channels · ReLU BN conv1×1 (x))
    y = head(mean over the cells of the last map)

The Y in the name is squeeze-and-excitation (arXiv 1709.01507) with a quarter of the channels of the *block's input*; without it, RegNetX.

Parameter names are timm's (`stem.conv`, `stem.bn`, `s1.b1.conv1.conv`, `s1.b1.se.fc1`, `s1.b1.downsample.conv`, `head.fc`).

Axes: B batch, C channels, H W pixels, h w cells of a map, D channels of the last map, L blocks, K classes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kawara.layers.convolution import ConvolutionNorm, SqueezeExcitation
from kawara.layers.residual import SkipConnection
from kawara.models.convnet import ConvNet, ConvNetConfig, require, stage_rates
from kawara.models.interface import Variant, new_head


@dataclass(frozen=True)
class RegNetConfig(ConvNetConfig):
    """Everything that fixes the architecture of a RegNet. The defaults are RegNetY-400MF at 224 px.

    `stages_by_rule` makes depths and widths from the numbers of the paper.
    """

    depths: tuple[int, ...] = (1, 3, 6, 6)
    widths: tuple[int, ...] = (48, 104, 208, 440)
    group_width: int = 8
    """g: channels of one group of the 3×3 convolutions; a stage narrower than that is one group."""
    squeeze_ratio: float = 0.25
    """Hidden channels of squeeze-and-excitation, for each channel of the block's input; 0: none (RegNetX)."""
    stem_width: int = 32
    zero_residual: bool = True
    """Whether blocks start as their shortcut; see `initialise`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("group_width", "stem_width"):
            require(getattr(self, name) >= 1, f"The model option {name} must be at least 1.", getattr(self, name))
        require(0 <= self.squeeze_ratio <= 1, "The model option squeeze_ratio is a share.", self.squeeze_ratio, "0.25, or 0 for none")
        uneven = [width for width in self.widths if width % min(width, self.group_width)]
        require(not uneven, f"A width must be a multiple of the group width {self.group_width}.", uneven)

    @property
    def total_stride(self) -> int:
        """How many pixels, in each direction, there are to one cell of the last map."""
        return 2 ** (len(self.depths) + 1)


def stages_by_rule(w0: int, wa: float, wm: float, depth: int, group_width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (depths, widths) of the stages by eqs. 2–4 of the paper."""
    exponents = [round(math.log((w0 + wa * block) / w0) / math.log(wm)) for block in range(depth)]
    widths = [round(w0 * wm**exponent / 8) * 8 for exponent in exponents]
    stages = [(len(list(blocks)), width) for width, blocks in groupby(widths)]
    groups = [min(group_width, width) for _, width in stages]
    return tuple(count for count, _ in stages), tuple(round(width / group) * group for (_, width), group in zip(stages, groups))


class RegNet(ConvNet):
    """A RegNet: normalised images (B, C, H, W) of any size to logits (B, K); h = ⌈H / total stride⌉."""

    config: RegNetConfig
    head_names = ("head.fc",)

    def __init__(self, config: RegNetConfig):
        super().__init__(config)
        self.stem = ConvolutionNorm(config.channels, config.stem_width, kernel=3, stride=2)
        channels = config.stem_width
        for stage, (width, rates) in enumerate(zip(config.widths, stage_rates(config)), start=1):
            blocks = OrderedDict()
            for index, rate in enumerate(rates, start=1):
                blocks[f"b{index}"] = RegNetBlock(config, channels, width, 2 if index == 1 else 1, rate)
                channels = width
            self.add_module(f"s{stage}", nn.Sequential(blocks))
        self.head = nn.ModuleDict({"fc": new_head(config.num_features, config.num_classes)})
        initialise(self)

    @property
    def block_names(self) -> list[str]:
        return [f"s{stage}.b{index + 1}" for stage, depth in enumerate(self.config.depths, start=1) for index in range(depth)]

    def maps(self, image: Tensor) -> Tensor:
        maps = self.stem(image)
        for stage in range(1, len(self.config.depths) + 1):
            maps = self.get_submodule(f"s{stage}")(maps)
        return maps


class RegNetBlock(nn.Module):
    """Bottleneck without narrowing: (B, C, h, w) to (B, C', ⌈h/stride⌉, ⌈w/stride⌉)."""

    def __init__(self, config: RegNetConfig, channels_in: int, width: int, stride: int, stochastic_depth: float):
        super().__init__()
        groups = width // min(config.group_width, width)
        self.conv1 = ConvolutionNorm(channels_in, width, kernel=1)
        self.conv2 = ConvolutionNorm(width, width, kernel=3, stride=stride, groups=groups)
        hidden = round(channels_in * config.squeeze_ratio)
        self.se = SqueezeExcitation(width, hidden) if hidden else nn.Identity()
        self.conv3 = ConvolutionNorm(width, width, kernel=1, activation_name=None)
        changes = stride > 1 or channels_in != width
        self.downsample = ConvolutionNorm(channels_in, width, 1, stride, activation_name=None) if changes else nn.Identity()
        self.skip = SkipConnection(stochastic_depth)

    def forward(self, maps: Tensor) -> Tensor:
        branch = self.conv3(self.se(self.conv2(self.conv1(maps))))
        return F.relu(self.skip(self.downsample(maps), branch))


@torch.no_grad()
def initialise(model: RegNet) -> None:
    """Draw every parameter of a RegNet anew, and forget what its norms have seen.

    | tensor                                       | value                                                                        |
    |----------------------------------------------|------------------------------------------------------------------------------|
    | convolutions, those of SE too                | N(√(2/fan_out)), fan_out = C'·k²/groups: what one input value reaches (pycls) |
    | biases of SE                                 | 0: gates start around σ(0) = ½                                               |
    | batch norms                                  | γ=1, β=0, mean 0, variance 1                                                 |
    | last batch norm of a block, zero_residual    | γ=0: the block starts as its shortcut (arXiv 1706.02677, §5.1)               |
    | head                                         | 0: the first loss is ln K                                                    |
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.weight[0, 0].numel() // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    model.reset_head(model.config.num_classes)
    if model.config.zero_residual:
        for name in model.block_names:
            block = model.get_submodule(name)
            assert isinstance(block, RegNetBlock)
            nn.init.zeros_(block.conv3.bn.weight)


_RULES = {
    # name     w0    wa      wm   depth group width (the models of the paper's appendix, as timm and pycls write them)
    "400mf": (48, 27.89, 2.09, 16, 8),
    "800mf": (56, 38.84, 2.4, 14, 16),
    "1_6gf": (48, 20.71, 2.65, 27, 24),
    "3_2gf": (80, 42.63, 2.66, 21, 24),
    "4gf": (96, 31.41, 2.24, 22, 64),
    "8gf": (192, 76.82, 2.19, 17, 56),
    "12gf": (168, 73.36, 2.37, 19, 112),
    "16gf": (200, 106.23, 2.48, 18, 112),
}


def _variants() -> list[Variant]:
    """Return every named RegNetY."""
    rows = []
    for name, rule in _RULES.items():
        depths, widths = stages_by_rule(*rule)
        config = RegNetConfig(depths=depths, widths=widths, group_width=rule[-1])
        cost = name.upper().replace("_", ".")
        stages = f"widths {', '.join(map(str, widths))}, blocks {', '.join(map(str, depths))}"
        rows.append(Variant(f"regnety_{name}", config, f"RegNetY-{cost}, {stages}, groups of {rule[-1]}, 224 px", "arXiv 2003.13678"))
    return rows


VARIANTS = _variants()
