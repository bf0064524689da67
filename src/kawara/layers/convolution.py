"""What CNNs are made of: convolutions with a norm behind them, channel and spatial attention, norms over channels.

Convolutional layer (ResNet, arXiv 1512.03385): y = ReLU(BN(W * x)). BN's shift makes a bias before it useless, so W has none, and padding
of (k − 1)/2 keeps the size at stride 1; in general h = ⌈H / stride⌉.

Squeeze-and-excitation (arXiv 1709.01507, eqs. 2–4) lets what is in the whole image scale each channel:

    z_c = mean over H and W of x_c        s = σ(W₂ ReLU(W₁ z + b₁) + b₂)        x̃_c = s_c x_c

Spatial attention (CBAM, arXiv 1807.06521, eq. 3) lets what is around a place scale that place, in all channels alike:

    m = σ(conv7×7([mean over C of x; max over C of x]) + b)        x̃_ij = m_ij x_ij

Differs from CBAM: a bias, and no norm behind this convolution, as in the paper's equation (its code has one).

Channels last: maps keep their shape (B, C, H, W) but lie in memory as (B, H, W, C). Measured on a CPU, forward and backward, one thread,
against the usual layout: a ResNet of widths 16-32-64 on 28 px grey, B=64: 104 ms and 132; widths 40-80-160 on 32 px, B=64: 760 and 915;
ResNet-18 at 128 px, B=8: 354 and 352; a depthwise 7×7 convolution of 40 channels on 16×16, B=64: 12 and 40.

Axes: B batch, C channels, H W pixels or cells of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kawara.layers.feedforward import Activation, activation


def convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, (B, C, H, W) to (B, C', ⌈H/stride⌉, ⌈W/stride⌉) for an odd kernel; channels last stay last."""
    kind = ChannelsLastConv2d if channels_in == 1 else nn.Conv2d  # the strides of one channel do not say where it lies
    return kind(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)


class ChannelsLastConv2d(nn.Conv2d):
    """A convolution that always runs with its channels last: for the first layer of a model.

    torch picks the layout from the strides of input and weight; those of a one-channel image say nothing, so the weight must. It is copied
    at each call (a few kB) because a weight stored that way is not contiguous, and model files hold contiguous tensors only. `clone` and
    not `contiguous`, which leaves a weight of one input channel as it is: it counts as contiguous in both layouts.
    """

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight.clone(memory_format=torch.channels_last), self.bias)


class PositionwiseNorm(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, H, W) map, at each position alone."""

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvolutionNorm(nn.Module):
    """Convolution, batch norm and, unless `activation_name` is None, a non-linearity."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        activation_name: Activation | None = "relu",
    ):
        super().__init__()
        self.conv = convolution(channels_in, channels_out, kernel, stride, groups)
        self.bn = nn.BatchNorm2d(channels_out)
        self.act = nn.Identity() if activation_name is None else activation(activation_name)

    def forward(self, maps: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(maps)))


class PooledConv2d(nn.Conv2d):
    """A 1×1 convolution of maps that are one cell large, (B, C) to (B, C'), as the matrix product that it is.

    Stored as a convolution because every public checkpoint does. Measured on a CPU, forward and backward, one thread, a whole SE block
    with 32 channels on 16×16, B=64: 1.3 ms against 2.8.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(channels_in, channels_out, kernel_size=1)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.flatten(1), self.bias)


class SqueezeExcitation(nn.Module):
    """Scale each channel of (B, C, H, W) by a gate in (0, 1) made from the means of all channels."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = PooledConv2d(channels, hidden)
        self.fc2 = PooledConv2d(hidden, channels)

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.gates(maps.mean(dim=(2, 3)))[:, :, None, None]

    def gates(self, means: Tensor) -> Tensor:
        """Return the gates s (B, C) for the means z (B, C)."""
        return torch.sigmoid(self.fc2(F.relu(self.fc1(means))))


class SpatialAttention(nn.Module):
    """Scale each place of (B, C, H, W) by a gate in (0, 1) made from the mean and the largest of its channels, and of those around it."""

    def __init__(self, kernel: int = 7):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2)

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.gates(maps)

    def gates(self, maps: Tensor) -> Tensor:
        """Return the gates m (B, 1, H, W) for the maps x."""
        described = torch.cat([maps.mean(dim=1, keepdim=True), maps.amax(dim=1, keepdim=True)], dim=1)
        return torch.sigmoid(self.conv(described))


def squeezed_channels(channels: int, reduction: int) -> int:
    """Return the hidden width C/r of squeeze-and-excitation, rounded to the nearest multiple of 8, at least 8 (timm)."""
    return max(8, int(channels / reduction + 4) // 8 * 8)
