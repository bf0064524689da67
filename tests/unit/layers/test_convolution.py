"""Convolutional layers and channel and spatial attention against slow arithmetic."""

import math

import pytest
import torch
import torch.nn.functional as F

from kawara.layers.convolution import (
    ConvolutionNorm,
    PositionwiseNorm,
    SpatialAttention,
    SqueezeExcitation,
    convolution,
    squeezed_channels,
)


def test_squeeze_and_excitation_is_equations_two_to_four() -> None:
    torch.manual_seed(0)
    layer = SqueezeExcitation(6, 4).double()
    maps = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    output = layer(maps)
    w1, b1, w2, b2 = (tensor.detach().squeeze() for tensor in (layer.fc1.weight, layer.fc1.bias, layer.fc2.weight, layer.fc2.bias))
    for image in range(2):
        z = [maps[image, channel].sum().item() / 15 for channel in range(6)]
        hidden = [max(0.0, sum(w1[i, c].item() * z[c] for c in range(6)) + b1[i].item()) for i in range(4)]
        for channel in range(6):
            logit = sum(w2[channel, i].item() * hidden[i] for i in range(4)) + b2[channel].item()
            expected = maps[image, channel] / (1 + math.exp(-logit))
            torch.testing.assert_close(output[image, channel], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [3, 7])
def test_spatial_attention_is_its_equation(kernel: int) -> None:
    torch.manual_seed(0)
    layer = SpatialAttention(kernel).double()
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    output = layer(maps)
    weight, bias, half = layer.conv.weight.detach()[0], layer.conv.bias.item(), kernel // 2
    for image in range(2):
        cells = {(i, j): maps[image, :, i, j].tolist() for i in range(4) for j in range(5)}
        for (i, j), channels in cells.items():
            logit = bias
            for down in range(kernel):
                for right in range(kernel):
                    around = cells.get((i + down - half, j + right - half))
                    if around:  # beyond the border there are zeros
                        logit += weight[0, down, right].item() * sum(around) / 3 + weight[1, down, right].item() * max(around)
            expected = [channel / (1 + math.exp(-logit)) for channel in channels]
            assert output[image, :, i, j].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(
    ("channels", "hidden"), [(16, 8), (64, 8), (192, 16), (200, 16), (256, 16), (512, 32), (1024, 64), (2048, 128), (320, 24)]
)
def test_hidden_channels_are_a_sixteenth_rounded_to_eight(channels: int, hidden: int) -> None:
    assert squeezed_channels(channels, 16) == hidden


@pytest.mark.parametrize(("channels", "kernel", "stride"), [(4, 1, 1), (4, 1, 2), (4, 3, 1), (4, 7, 2), (1, 3, 1), (1, 3, 2), (1, 7, 2)])
def test_a_convolution_rounds_sizes_up_and_keeps_channels_last(channels: int, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = convolution(channels, 8, kernel, stride)
    maps = torch.randn(2, channels, 9, 12)
    output = layer(maps.contiguous(memory_format=torch.channels_last))
    assert output.shape == (2, 8, -(-9 // stride), -(-12 // stride))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert not output.is_contiguous()
    torch.testing.assert_close(output, F.conv2d(maps, layer.weight, None, stride, kernel // 2), rtol=1e-4, atol=1e-5)
    output.sum().backward()
    assert layer.weight.is_contiguous()


def test_convolution_norm_in_evaluation_is_a_scaled_convolution() -> None:
    torch.manual_seed(0)
    layer = ConvolutionNorm(4, 6, 3, groups=2).double().eval()
    for parameter in (layer.bn.weight, layer.bn.bias, layer.bn.running_mean, layer.bn.running_var):
        torch.nn.init.uniform_(parameter, 0.5, 2.0)
    maps = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    halves = [F.conv2d(part, weight, padding=1) for part, weight in zip(maps.chunk(2, dim=1), layer.conv.weight.chunk(2))]
    scale = layer.bn.weight / (layer.bn.running_var + 1e-5).sqrt()
    expected = torch.cat(halves, dim=1) * scale[:, None, None] + (layer.bn.bias - layer.bn.running_mean * scale)[:, None, None]
    torch.testing.assert_close(layer(maps), expected.clamp(min=0))
    layer.act = ConvolutionNorm(4, 6, 3, activation_name=None).act
    torch.testing.assert_close(layer(maps), expected)


def test_positionwise_norm_looks_at_one_position_alone() -> None:
    torch.manual_seed(0)
    layer = PositionwiseNorm(5, eps=1e-6).double()
    torch.nn.init.uniform_(layer.weight)
    torch.nn.init.uniform_(layer.bias)
    maps = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    cell = maps[1, :, 2, 3]
    variance = ((cell - cell.mean()) ** 2).mean()
    torch.testing.assert_close(layer(maps)[1, :, 2, 3], (cell - cell.mean()) / (variance + 1e-6).sqrt() * layer.weight + layer.bias)
