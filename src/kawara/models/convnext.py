"""ConvNeXt: a CNN with the block structure of a transformer.

A ConvNet for the 2020s, arXiv 2201.03545, §2 and figure 4. A depthwise 7×7 convolution takes the place of attention; the rest is a
pre-norm MLP whose branch is scaled by a learned γ (layer scale, arXiv 2103.17239).

    maps₀ = LN(conv P×P of stride P (x))
    block(x) = x + γ · MLP(LN(depthwise conv 7×7 (x)))          MLP: D → 4D, GELU, → D, at each cell alone
    between stages: conv 2×2 of stride 2 (LN(x))
    y = head(LN(mean over the cells of the last map))

Sizes: tiny, small and base are the paper's; atto, femto, pico and nano timm's; zepto, yocto and ronto go on downward here.
Differs from the paper, for small images: stems of stride 2 (2×2) and 1 (3×3, as a 1×1 convolution would see single pixels), and no γ, which
from 1e-6 grows too slowly for a short training (docs/lab-log.md).

Parameter names are timm's (`stem.0`, `stages.0.blocks.0.conv_dw`, `….norm`, `….mlp.fc1`, `….gamma`, `stages.1.downsample.1`, `head.norm`,
`head.fc`).

Axes: B batch, C channels, H W pixels, P stem stride, h w cells of a map, D channels of a map, L blocks, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, nn

from kawara.errors import ConfigError, UnknownNameError
from kawara.layers.convolution import ChannelsLastConv2d, PositionwiseNorm
from kawara.layers.feedforward import Activation, FeedForward
from kawara.layers.residual import SkipConnection
from kawara.models.convnet import ConvNet, ConvNetConfig, require, stage_rates
from kawara.models.interface import Variant, new_head


@dataclass(frozen=True)
class ConvNeXtConfig(ConvNetConfig):
    """Everything that fixes the architecture of a ConvNeXt. The defaults are ConvNeXt-T at 224 px."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    stem_stride: int = 4
    """P: the stem is a P×P convolution of stride P; at 1, a 3×3 convolution."""
    kernel_size: int = 7
    """Of the depthwise convolutions."""
    layer_scale: float | None = 1e-6
    """Starting value of γ; None: no layer scale."""
    activation: Activation = "gelu"
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.stem_stride >= 1, "The model option stem_stride must be at least 1.", self.stem_stride)
        odd = self.kernel_size >= 1 and self.kernel_size % 2 == 1
        require(odd, "The kernel size must be odd, so that it has a centre.", self.kernel_size, f"{self.kernel_size + 1}")
        if self.activation not in get_args(Activation):
            raise UnknownNameError("value of activation", str(self.activation), get_args(Activation))
        self.check_size(self.image_size)

    @property
    def total_stride(self) -> int:
        """How many pixels, in each direction, there are to one cell of the last map."""
        return self.stem_stride * 2 ** (len(self.depths) - 1)

    def check_size(self, image_size: tuple[int, int]) -> None:
        """Raise ConfigError for an image of (H, W) pixels that would leave nothing of the last map."""
        if min(image_size) < self.total_stride:
            raise ConfigError(
                "The image is smaller than one cell of the last map.",
                got=f"{image_size[0]}×{image_size[1]} px",
                allowed=f"{self.total_stride} px and more",
                remedy="a model with a smaller stem_stride or fewer stages, or larger images",
            )


class ConvNeXt(ConvNet):
    """A ConvNeXt: normalised images (B, C, H, W) to logits (B, K).

    h = ⌊H / total stride⌋: what is left over at the right and lower edge of a map is not seen, as in timm.
    """

    config: ConvNeXtConfig
    head_names = ("head.fc",)

    def __init__(self, config: ConvNeXtConfig):
        super().__init__(config)
        stride, first = config.stem_stride, config.widths[0]
        kernel, padding = (stride, 0) if stride > 1 else (3, 1)
        self.stem = nn.Sequential(
            ChannelsLastConv2d(config.channels, first, kernel, stride=stride, padding=padding), PositionwiseNorm(first, config.norm_eps)
        )
        channels_in = (None, *config.widths[:-1])
        self.stages = nn.ModuleList(
            ConvNeXtStage(config, narrow, width, rates) for narrow, width, rates in zip(channels_in, config.widths, stage_rates(config))
        )
        norm = nn.LayerNorm(config.num_features, eps=config.norm_eps)
        self.head = nn.ModuleDict({"norm": norm, "fc": new_head(config.num_features, config.num_classes)})
        initialise(self)

    @property
    def block_names(self) -> list[str]:
        return [f"stages.{stage}.blocks.{index}" for stage, depth in enumerate(self.config.depths) for index in range(depth)]

    def maps(self, image: Tensor) -> Tensor:
        self.config.check_size((image.shape[-2], image.shape[-1]))
        maps = self.stem(image)
        for stage in self.stages:
            maps = stage(maps)
        return maps

    def pool(self, maps: Tensor) -> Tensor:
        return self.head["norm"](maps.mean(dim=(2, 3)))

    def layer_index(self, parameter_name: str) -> int:
        """Return 0 for the stem, i + 1 for block i, counted through all stages, L + 1 for the rest.

        The convolution between two stages belongs to the block after it.
        """
        return super().layer_index(parameter_name.replace(".downsample.", ".blocks.0."))


class ConvNeXtStage(nn.Module):
    """Halve a map, except in the first stage (`channels_in` None), then run the blocks: (B, C, h, w) to (B, D, ⌊h/2⌋, ⌊w/2⌋)."""

    def __init__(self, config: ConvNeXtConfig, channels_in: int | None, width: int, rates: list[float]):
        super().__init__()
        if channels_in is None:
            self.downsample = nn.Identity()
        else:
            halving = nn.Conv2d(channels_in, width, kernel_size=2, stride=2)
            self.downsample = nn.Sequential(PositionwiseNorm(channels_in, config.norm_eps), halving)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(config, width, rate) for rate in rates))

    def forward(self, maps: Tensor) -> Tensor:
        return self.blocks(self.downsample(maps))


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, MLP: (B, D, h, w) to (B, D, h, w)."""

    def __init__(self, config: ConvNeXtConfig, width: int, stochastic_depth: float):
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, config.kernel_size, padding=config.kernel_size // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = FeedForward(width, 4 * width, activation_name=config.activation)
        self.gamma = None if config.layer_scale is None else nn.Parameter(torch.full((width,), config.layer_scale))
        self.skip = SkipConnection(stochastic_depth)

    def forward(self, maps: Tensor) -> Tensor:
        branch = self.mlp(self.norm(self.conv_dw(maps).permute(0, 2, 3, 1)))  # (B, h, w, D): a view, as channels lie last
        if self.gamma is not None:
            branch = branch * self.gamma
        return self.skip(maps, branch.permute(0, 3, 1, 2))


@torch.no_grad()
def initialise(model: ConvNeXt) -> None:
    """Draw every parameter of a ConvNeXt anew. N_t(σ) is a normal of deviation σ cut at ±2 absolute.

    | tensor                     | value                                          |
    |----------------------------|------------------------------------------------|
    | convolutions, MLP weights  | N_t(0.02), as in the paper's code              |
    | biases                     | 0                                              |
    | norms                      | γ=1, β=0                                       |
    | layer scale                | config.layer_scale                             |
    | head                       | 0: the first loss is ln K                      |
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, ConvNeXtBlock) and module.gamma is not None and model.config.layer_scale is not None:
            nn.init.constant_(module.gamma, model.config.layer_scale)
    model.reset_head(model.config.num_classes)


_PAPER = "arXiv 2201.03545"
_TIMM = "timm"
_OURS = "kawara"

_SIZES = {
    # name    blocks          widths                 strides of the stem  source
    "ronto": ((2, 2, 4, 2), (16, 32, 64, 128), (1, 2), _OURS),
    "yocto": ((2, 2, 4, 2), (24, 48, 96, 192), (1, 2), _OURS),
    "zepto": ((2, 2, 4, 2), (32, 64, 128, 256), (1, 2), _OURS),
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320), (1, 2, 4), _TIMM),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384), (1, 2, 4), _TIMM),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512), (4,), _TIMM),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640), (4,), _TIMM),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768), (4,), _PAPER),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768), (4,), _PAPER),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024), (4,), _PAPER),
}


def _variants() -> list[Variant]:
    """Return every named ConvNeXt; stems of stride 1 and 2 are for small images."""
    rows = []
    for name, (depths, widths, strides, source) in _SIZES.items():
        stages = f"widths {', '.join(map(str, widths))}, blocks {', '.join(map(str, depths))}"
        for stride in strides:
            config = ConvNeXtConfig(depths=depths, widths=widths, stem_stride=stride)
            suffix, where = "", "224 px"
            if stride < 4:
                config = replace(config, image_size=(32, 32), layer_scale=None)
                suffix, where = f"_{stride}", "small images"
            rows.append(Variant(f"convnext_{name}{suffix}", config, f"ConvNeXt-{name}, stem of stride {stride}, {stages}, {where}", source))
    return rows


VARIANTS = _variants()
