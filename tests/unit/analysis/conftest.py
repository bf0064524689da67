"""Small models whose answers can be worked out by hand or by loops."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from kawara.layers.residual import SkipConnection
from kawara.models import Features, ImageModel, ViTConfig, build

SMALL_VIT = ViTConfig(image_size=(12, 8), num_classes=5, patch_size=4, width=16, depth=3, heads=2, mlp_hidden=24)


class Residual(nn.Module):
    """A residual block that may halve the map."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.downsample = nn.Conv2d(channels_in, channels, 1, stride)
        self.skip = SkipConnection(0.0)

    def forward(self, maps: Tensor) -> Tensor:
        return self.skip(self.downsample(maps), self.conv2(self.conv1(maps).relu())).relu()


class Stage(nn.Module):
    """Two blocks of one size."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.blocks = nn.Sequential(Residual(channels_in, channels, stride), Residual(channels, channels, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return self.blocks(maps)


class Mapped(ImageModel):
    """A model made of any layers that give a map: (B, C, H, W) to (B, D, h, w)."""

    def __init__(self, layers: nn.Sequential, width: int, channels: int = 3):
        super().__init__()
        self.layers = layers
        self.head = nn.Linear(width, 5)
        self.config = SimpleNamespace(channels=channels)

    def features(self, image: Tensor) -> Features:
        maps = self.layers(image)
        return Features(maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3]), 0, maps.mean(dim=(2, 3)))

    def apply_heads(self, features: Features) -> tuple[Tensor, ...]:
        return (self.head(features.pooled),)


def shaken(model: nn.Module) -> nn.Module:
    """Move every parameter away from its starting value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture
def vit() -> ImageModel:
    """Three blocks, a class token, a grid of 3×2."""
    torch.manual_seed(0)
    model = build(SMALL_VIT)
    shaken(model)
    return model


@pytest.fixture
def cnn() -> ImageModel:
    """Two stages of two residual blocks: 12×8 px to 12×8 and 6×4 cells."""
    torch.manual_seed(1)
    return Mapped(nn.Sequential(Stage(3, 6, 1), Stage(6, 10, 2)), 10)


@pytest.fixture
def mapped() -> type[Mapped]:
    return Mapped


@pytest.fixture
def batches() -> list[Tensor]:
    """Three batches of unequal size, one of them too small for HSIC₁."""
    torch.manual_seed(2)
    return [torch.randn(count, 3, 12, 8) for count in (9, 6, 2)]
