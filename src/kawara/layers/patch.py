"""From image to tokens: the patch projection and the convolutional stem.

Patch projection (ViT, arXiv 2010.11929, eq. 1): cut the image into P×P patches, flatten each, multiply by E ∈ R^{(P²C)×D}.
It is the same function as a convolution with kernel and stride P, and its weight is stored in that layout (D, C, P, P), which every
public checkpoint uses. Differs from the usual code: computed as reshape + matrix product, because that is faster. Measured on a CPU,
forward and backward, one thread, against conv2d: P=4, 32 px, B=64, D=192: 2.8 ms and 4.8 ms; P=16, 224 px, B=8, D=192: 11.9 and 14.3;
P=4, 28 px grey, B=64, D=64: 0.5 and 1.9. (F.unfold: 3.2, 15.6 and 0.6.)

Convolutional stem (Early Convolutions Help Transformers See Better, arXiv 2106.14881): the P×P projection is replaced by log₂P
convolutions 3×3 of stride 2, each followed by a norm and a non-linearity. Differs from the paper: the last 3×3 convolution may already give
the width, without a 1×1 projection after it; no transformer block is taken away in exchange.

Axes: B batch, C channels, H W pixels, P patch side, h w patch grid, D width.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kawara.errors import ConfigError, UnknownNameError
from kawara.layers.convolution import ChannelsLastConv2d, PositionwiseNorm
from kawara.layers.feedforward import Activation, activation

StemNorm = Literal["batch", "layer"]


def cut_patches(image: Tensor, patch_size: int) -> Tensor:
    """Cut (B, C, H, W) into patches, row by row: (B, h·w, C P²)."""
    batch, channels, height_px, width_px = image.shape
    h, w = height_px // patch_size, width_px // patch_size
    patches = image.reshape(batch, channels, h, patch_size, w, patch_size).permute(0, 2, 4, 1, 3, 5)  # (B, h, w, C, P, P)
    return patches.reshape(batch, h * w, channels * patch_size**2)


class PatchProjection(nn.Module):
    """The weights of eq. 1 and their product with every patch: (B, C, H, W) to (B, h·w, D)."""

    def __init__(self, channels: int, width: int, patch_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias from U(−1/√(P²C), 1/√(P²C)): the default of a convolution in PyTorch, which DeiT and timm keep."""
        bound = 1.0 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, image: Tensor) -> Tensor:
        return F.linear(cut_patches(image, self.weight.shape[-1]), self.weight.flatten(1), self.bias)

    def extra_repr(self) -> str:
        width, channels, patch, _ = self.weight.shape
        return f"{channels}, {width}, patch_size={patch}"


class PatchEmbedding(nn.Module):
    """Cut an image into patches and project each to a token: (B, C, H, W) to (B, h·w, D)."""

    def __init__(self, channels: int, width: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = PatchProjection(channels, width, patch_size)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return (h, w) for an image of (H, W) pixels. Raises ConfigError unless both are multiples of the patch."""
        return patch_grid(image_size, self.patch_size)

    def forward(self, image: Tensor) -> Tensor:
        self.grid((image.shape[-2], image.shape[-1]))
        return self.proj(image)


class ConvolutionalStem(nn.Module):
    """Turn an image into tokens by log₂P strided 3×3 convolutions: (B, C, H, W) to (B, h·w, D).

    `hidden` holds the output channels of each convolution; None doubles up to the width (D/4, D/2, D for P = 8). Where the last one
    is not the width, or with `projection`, a 1×1 convolution follows. h = ⌈H/P⌉, so that the image need not be a multiple of P
    (28 px at P = 8 gives 4×4).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        patch_size: int,
        hidden: tuple[int, ...] | None = None,
        *,
        norm: StemNorm = "batch",
        activation_name: Activation = "relu",
        projection: bool = False,
    ):
        super().__init__()
        self.patch_size = patch_size
        hidden = stem_channels(width, patch_size) if hidden is None else hidden
        check_stem(patch_size, hidden)
        if norm not in get_args(StemNorm):
            raise UnknownNameError("stem norm", norm, get_args(StemNorm))
        layers: list[nn.Module] = []
        for channels_in, channels_out in zip((channels, *hidden[:-1]), hidden):
            # The norm's shift makes a bias before it useless.
            layers.append(ChannelsLastConv2d(channels_in, channels_out, kernel_size=3, stride=2, padding=1, bias=False))
            layers.append(nn.BatchNorm2d(channels_out) if norm == "batch" else PositionwiseNorm(channels_out))
            layers.append(activation(activation_name))
        self.convolutions = nn.Sequential(*layers)
        self.proj = nn.Conv2d(hidden[-1], width, kernel_size=1) if projection or hidden[-1] != width else nn.Identity()

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return (h, w) = (⌈H/P⌉, ⌈W/P⌉) for an image of (H, W) pixels."""
        return -(-image_size[0] // self.patch_size), -(-image_size[1] // self.patch_size)

    def forward(self, image: Tensor) -> Tensor:
        # Channels last: the map is then already a list of tokens, and the convolutions are faster. Measured on a CPU, forward and backward,
        # one thread, B=64: 28 px grey, channels 32, 64: 7.5 ms against 11.6; 32 px, channels 96, 192: 63 against 76.
        maps = self.proj(self.convolutions(image.contiguous(memory_format=torch.channels_last)))
        return maps.permute(0, 2, 3, 1).flatten(1, 2)


def patch_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return (H/P, W/P). Raises ConfigError naming the nearest two sizes where a side is not a multiple of the patch."""
    for side in image_size:
        if side < patch_size or side % patch_size:
            below = side // patch_size * patch_size
            near = [size for size in (below, below + patch_size) if size > 0]
            raise ConfigError(
                f"The image size must be a multiple of the patch size {patch_size}.",
                got=f"{image_size[0]}×{image_size[1]} px",
                remedy=" or ".join(f"{size} px instead of {side} px" for size in near),
            )
    return image_size[0] // patch_size, image_size[1] // patch_size


def stem_channels(width: int, patch_size: int) -> tuple[int, ...]:
    """Return the default output channels of the stem's convolutions: doubling, the last one the width."""
    num_convolutions = max(1, patch_size.bit_length() - 1)
    return tuple(max(1, width >> shift) for shift in reversed(range(num_convolutions)))


def check_stem(patch_size: int, hidden: tuple[int, ...]) -> None:
    """Raise ConfigError unless the patch is a power of two and there is one convolution for each halving."""
    if patch_size < 2 or patch_size & (patch_size - 1):
        raise ConfigError(
            "A convolutional stem halves the image again and again, so the patch size must be a power of two.",
            got=patch_size,
            allowed="2, 4, 8, 16, 32",
            remedy="stem 'patch' for other patch sizes",
        )
    if len(hidden) != patch_size.bit_length() - 1 or min(hidden) < 1:
        raise ConfigError(
            f"A stem of total stride {patch_size} has {patch_size.bit_length() - 1} convolutions of at least one channel.",
            got=f"channels {hidden}",
        )
