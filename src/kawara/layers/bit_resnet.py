"""The ResNet that a hybrid ViT looks through: that of Big Transfer, up to any of its stages.

ViT, arXiv 2010.11929, §3.1 "Hybrid architecture" and §4.1. Big Transfer, arXiv 1912.11370: group norm (arXiv 1803.08494, 32 groups) in
place of batch norm, and convolutions whose weights are standardised at each use (arXiv 1903.10520):

    ŵ = (w − mean(w)) / (std(w) + 1e-5)     over the inputs of each output channel
    root:  7×7/2 ŵ-convolution, GN, ReLU, 3×3/2 max-pool           stride 4
    unit:  y = ReLU(GN(ŵ₃ * ReLU(GN(ŵ₂ * ReLU(GN(ŵ₁ * x))))) + shortcut(x)), widths c, c, 4c with c = width · 2^stage

Differs from Big Transfer, as in the code of the ViT paper: the norm comes after each convolution, not before it. Padding is that of
TensorFlow ("SAME"): at stride 2 and an even side it is one cell wider behind than before, so weights from there want it here too.

Axes: B batch, C channels, H W pixels, h w cells, D width of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kawara.errors import ConfigError
from kawara.layers.patch import PatchProjection, patch_grid

GROUPS = 32
EXPANSION = 4

_NORM_EPS = 1e-6
_WEIGHT_EPS = 1e-5


class StandardisedConv2d(nn.Conv2d):
    """A convolution without bias that standardises its weight at each use; "SAME" padding for even sides."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, stride: int = 1):
        before, behind = same_margins(kernel_size, stride)
        super().__init__(channels_in, channels_out, kernel_size, stride, padding=before, bias=False)
        self.more_behind = behind - before

    def forward(self, input: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) / (variance.sqrt() + _WEIGHT_EPS)
        if self.more_behind:
            input = F.pad(input, (0, self.more_behind, 0, self.more_behind))
        return F.conv2d(input, weight, stride=self.stride, padding=self.padding)


class BottleneckUnit(nn.Module):
    """1×1, 3×3, 1×1 convolutions around a skip connection: (B, channels_in, h, w) to (B, 4·channels, h/stride, w/stride)."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        channels_out = EXPANSION * channels
        self.conv1, self.norm1 = StandardisedConv2d(channels_in, channels, 1), _norm(channels)
        self.conv2, self.norm2 = StandardisedConv2d(channels, channels, 3, stride), _norm(channels)
        self.conv3, self.norm3 = StandardisedConv2d(channels, channels_out, 1), _norm(channels_out)
        if channels_in != channels_out or stride != 1:
            self.shortcut = nn.Sequential(StandardisedConv2d(channels_in, channels_out, 1, stride), _norm(channels_out))
        else:
            self.shortcut = nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        branch = self.norm1(self.conv1(maps)).relu()
        branch = self.norm2(self.conv2(branch)).relu()
        return (self.norm3(self.conv3(branch)) + self.shortcut(maps)).relu()


class BiTResNet(nn.Module):
    """Root and stages: (B, C, H, W) to (B, 4·width·2^(S−1), H/stride, W/stride) for S stages; the root alone gives `width` channels."""

    def __init__(self, channels: int, width: int, blocks: Sequence[int]):
        super().__init__()
        self.conv = StandardisedConv2d(channels, width, 7, stride=2)
        self.norm = _norm(width)
        self.stages = nn.ModuleList()
        self.num_features = width
        for index, num_units in enumerate(blocks):
            stage = nn.Sequential()
            for unit in range(num_units):
                stride = 2 if index and not unit else 1
                stage.append(BottleneckUnit(self.num_features, width << index, stride))
                self.num_features = EXPANSION * (width << index)
            self.stages.append(stage)

    def forward(self, image: Tensor) -> Tensor:
        before, behind = same_margins(3, 2)
        maps = F.pad(self.norm(self.conv(image)).relu(), (before, behind, before, behind))  # zeros never win: nothing is below them
        maps = F.max_pool2d(maps, kernel_size=3, stride=2)
        for stage in self.stages:
            maps = stage(maps)
        return maps


class ResNetEmbedding(nn.Module):
    """Turn an image into tokens: (B, C, H, W) to (B, h·w, D), h = H / patch_size. The cells of the ResNet's map are cut into patches."""

    def __init__(self, channels: int, width: int, patch_size: int, resnet_width: int, resnet_blocks: Sequence[int]):
        super().__init__()
        check_resnet(patch_size, resnet_width, resnet_blocks)
        self.patch_size = patch_size
        self.backbone = BiTResNet(channels, resnet_width, resnet_blocks)
        self.proj = PatchProjection(self.backbone.num_features, width, patch_size // resnet_stride(resnet_blocks))

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return (h, w) for an image of (H, W) pixels. Raises ConfigError unless both are multiples of the total stride."""
        return patch_grid(image_size, self.patch_size)

    def forward(self, image: Tensor) -> Tensor:
        self.grid((image.shape[-2], image.shape[-1]))
        return self.proj(self.backbone(image))


def same_margins(kernel_size: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's padding (before, behind) of a side that is a multiple of the stride: k − stride in all."""
    total = max(0, kernel_size - stride)
    return total // 2, total - total // 2


def resnet_stride(blocks: Sequence[int]) -> int:
    """Return how many pixels a cell of the map is wide: 4 after the root and the first stage, twice that after each further stage."""
    return 4 << max(0, len(blocks) - 1)


def check_resnet(patch_size: int, width: int, blocks: Sequence[int]) -> None:
    """Raise ConfigError unless the groups divide the width and the total stride is a multiple of the ResNet's."""
    if width < GROUPS or width % GROUPS:
        raise ConfigError(f"The width of the ResNet must be a multiple of its {GROUPS} groups.", got=width, remedy=f"{GROUPS} or 64")
    if any(num_units < 1 for num_units in blocks):
        raise ConfigError("Each stage of the ResNet has at least one block.", got=tuple(blocks))
    stride = resnet_stride(blocks)
    if patch_size % stride:
        raise ConfigError(
            f"A ResNet of {len(blocks)} stages has stride {stride}; the patch size is the total stride and must be a multiple of it.",
            got=patch_size,
            remedy=f"patch size {stride}",
        )


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=_NORM_EPS)
