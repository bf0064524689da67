"""Patch projection against a convolution, stems against their arithmetic."""

import pytest
import torch
import torch.nn.functional as F

from kawara.errors import ConfigError
from kawara.layers.patch import ConvolutionalStem, PatchEmbedding, stem_channels


@pytest.mark.parametrize(("channels", "size", "patch"), [(3, (32, 48), 8), (1, (28, 28), 7), (5, (6, 4), 2)])
def test_patch_projection_is_a_strided_convolution(channels: int, size: tuple[int, int], patch: int) -> None:
    torch.manual_seed(0)
    stem = PatchEmbedding(channels, 16, patch)
    image = torch.randn(2, channels, *size)
    tokens = stem(image)
    expected = F.conv2d(image, stem.proj.weight, stem.proj.bias, stride=patch)
    assert stem.grid(size) == expected.shape[2:]
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_patch_projection_reads_any_memory_layout() -> None:
    stem = PatchEmbedding(3, 16, 4)
    image = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(stem(image.contiguous(memory_format=torch.channels_last)), stem(image))


def test_a_size_that_is_no_multiple_of_the_patch_names_the_nearest_two() -> None:
    with pytest.raises(ConfigError, match="224 px instead of 230 px or 240 px instead of 230 px"):
        PatchEmbedding(3, 16, 16)(torch.zeros(1, 3, 224, 230))
    with pytest.raises(ConfigError, match=r"try: +16 px instead of 9 px"):
        PatchEmbedding(3, 16, 16).grid((9, 16))


@pytest.mark.parametrize("patch", [2, 4, 8, 16])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_stem_has_total_stride_of_the_patch(patch: int, norm: str) -> None:
    stem = ConvolutionalStem(1, 32, patch, norm=norm)  # type: ignore[arg-type]
    tokens = stem(torch.randn(2, 1, 32, 48))
    assert stem.grid((32, 48)) == (32 // patch, 48 // patch)
    assert tokens.shape == (2, 32 * 48 // patch**2, 32)


def test_stem_rounds_the_grid_up() -> None:
    stem = ConvolutionalStem(3, 16, 8)
    assert stem.grid((28, 30)) == (4, 4)
    assert stem(torch.randn(1, 3, 28, 30)).shape == (1, 16, 16)


def test_stem_equals_plain_convolutions_row_by_row() -> None:
    torch.manual_seed(0)
    stem = ConvolutionalStem(3, 8, 4, (6, 10)).eval()
    image = torch.randn(2, 3, 8, 12)
    maps = image
    for layer in stem.convolutions:
        weight = getattr(layer, "weight", None)
        maps = F.conv2d(maps, weight, stride=2, padding=1) if weight is not None and weight.ndim == 4 else layer(maps)
    maps = F.conv2d(maps, stem.proj.weight, stem.proj.bias)
    torch.testing.assert_close(stem(image), maps.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_stem_weights_stay_contiguous() -> None:
    stem = ConvolutionalStem(1, 8, 4)
    stem(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(parameter.is_contiguous() for parameter in stem.parameters())


def test_stem_channels_double_up_to_the_width() -> None:
    assert stem_channels(192, 16) == (24, 48, 96, 192)
    assert stem_channels(64, 4) == (32, 64)


def test_projection_only_where_asked_or_needed() -> None:
    assert isinstance(ConvolutionalStem(3, 16, 4).proj, torch.nn.Identity)
    assert isinstance(ConvolutionalStem(3, 16, 4, projection=True).proj, torch.nn.Conv2d)
    assert isinstance(ConvolutionalStem(3, 16, 4, (8, 8)).proj, torch.nn.Conv2d)


@pytest.mark.parametrize(("patch", "hidden"), [(7, None), (1, None), (4, (8,)), (4, (8, 8, 8)), (4, (0, 8))])
def test_a_stem_that_cannot_be_built_says_why(patch: int, hidden: tuple[int, ...] | None) -> None:
    with pytest.raises(ConfigError, match=r"power of two|convolutions"):
        ConvolutionalStem(3, 16, patch, hidden)
