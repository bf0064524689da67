"""The hybrid's ResNet against plain loops in float64, with TensorFlow's padding written out."""

import numpy as np
import pytest
import torch

from kawara.errors import ConfigError
from kawara.layers.bit_resnet import BiTResNet, BottleneckUnit, ResNetEmbedding, StandardisedConv2d, resnet_stride

RNG = np.random.default_rng(0)


def windows(maps: np.ndarray, kernel: int, stride: int, fill: float) -> np.ndarray:
    """(C, H, W) to (h, w, C, k, k), padded so that h = ⌈H / stride⌉ ("SAME"): the odd cell goes behind."""
    channels, *sides = maps.shape
    cells = [-(-side // stride) for side in sides]
    margins = [max((count - 1) * stride + kernel - side, 0) for count, side in zip(cells, sides)]
    padded = np.pad(maps, [(0, 0)] + [(total // 2, total - total // 2) for total in margins], constant_values=fill)
    found = np.empty((*cells, channels, kernel, kernel))
    for row in range(cells[0]):
        for column in range(cells[1]):
            found[row, column] = padded[:, row * stride : row * stride + kernel, column * stride : column * stride + kernel]
    return found


def convolve(maps: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    flat = weight.reshape(len(weight), -1)
    standardised = (flat - flat.mean(1, keepdims=True)) / (flat.std(1, keepdims=True) + 1e-5)
    return np.einsum("hwckl,dckl->dhw", windows(maps, weight.shape[-1], stride, 0.0), standardised.reshape(weight.shape))


def group_norm(maps: np.ndarray, layer: torch.nn.GroupNorm) -> np.ndarray:
    grouped = maps.reshape(32, -1)
    normed = (grouped - grouped.mean(1, keepdims=True)) / np.sqrt(grouped.var(1, keepdims=True) + 1e-6)
    return normed.reshape(maps.shape) * array(layer.weight)[:, None, None] + array(layer.bias)[:, None, None]


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.double()


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(found[0], torch.tensor(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_convolution_standardises_and_pads_as_tensorflow(kernel: int, stride: int) -> None:
    layer = shaken(StandardisedConv2d(3, 5, kernel, stride))
    maps = RNG.normal(size=(3, 8, 12))
    close(layer(torch.tensor(maps)[None]), convolve(maps, array(layer.weight), stride))


@pytest.mark.parametrize(("channels_in", "stride"), [(128, 1), (64, 2)])
def test_unit_is_three_convolutions_around_a_skip(channels_in: int, stride: int) -> None:
    unit = shaken(BottleneckUnit(channels_in, 32, stride))
    maps = RNG.normal(size=(channels_in, 4, 6))
    branch = np.maximum(group_norm(convolve(maps, array(unit.conv1.weight), 1), unit.norm1), 0)
    branch = np.maximum(group_norm(convolve(branch, array(unit.conv2.weight), stride), unit.norm2), 0)
    branch = group_norm(convolve(branch, array(unit.conv3.weight), 1), unit.norm3)
    assert isinstance(unit.shortcut, torch.nn.Identity) == (channels_in == 128)
    skip = maps if channels_in == 128 else group_norm(convolve(maps, array(unit.shortcut[0].weight), stride), unit.shortcut[1])
    close(unit(torch.tensor(maps)[None]), np.maximum(branch + skip, 0))


def test_root_is_a_convolution_and_a_max_pool() -> None:
    resnet = shaken(BiTResNet(3, 32, ()))
    image = RNG.normal(size=(3, 16, 24))
    maps = np.maximum(group_norm(convolve(image, array(resnet.conv.weight), 2), resnet.norm), 0)
    close(resnet(torch.tensor(image)[None]), windows(maps, 3, 2, -np.inf).max(axis=(3, 4)).transpose(2, 0, 1))


@pytest.mark.parametrize(("blocks", "stride", "channels"), [((), 4, 32), ((1,), 4, 128), ((2, 1), 8, 256), ((1, 1, 2), 16, 512)])
def test_stride_and_channels_follow_from_the_stages(blocks: tuple[int, ...], stride: int, channels: int) -> None:
    assert resnet_stride(blocks) == stride
    maps = BiTResNet(1, 32, blocks)(torch.randn(1, 1, 32, 64))
    assert maps.shape == (1, channels, 32 // stride, 64 // stride)
    tokens = ResNetEmbedding(1, 48, 32, 32, blocks)(torch.randn(1, 1, 32, 64))
    assert tokens.shape == (1, 2, 48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resnet_width": 48}, "multiple of its 32 groups"),
        ({"resnet_blocks": (1, 0)}, "at least one block"),
        ({"patch_size": 12}, "stride 8"),
    ],
)
def test_what_does_not_fit_says_so(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResNetEmbedding(**{"channels": 3, "width": 8, "patch_size": 16, "resnet_width": 32, "resnet_blocks": (1, 1)} | options)


def test_images_that_are_no_multiple_say_which_are() -> None:
    with pytest.raises(ConfigError, match="16 px instead of 20 px"):
        ResNetEmbedding(3, 8, 16, 32, (1, 1))(torch.zeros(1, 3, 20, 32))
