from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from kawara.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from kawara.errors import ConfigError, DataError


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth colours with an edge or two: what resizing meets in practice."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).copy()
    image[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 90)
    return image[..., :channels]


SIZES = [(375, 500), (500, 375), (256, 341), (224, 224), (100, 90), (300, 1000), (1000, 257), (1, 1), (3, 700)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(),
        Preprocessing(image_size=(96, 160), crop_fraction=0.9, interpolation="bilinear"),
        Preprocessing(image_size=(28, 28), color="grey", mean=(0.5,), std=(0.5,), crop_fraction=1.0),
        Preprocessing(image_size=(64, 48), resize="squash"),
    ],
    ids=["deit", "wide", "grey", "squash"],
)
def test_placing_a_shrunk_image_is_placing_the_original(preprocessing: Preprocessing, size: tuple[int, int]) -> None:
    image = photo(*size, channels=preprocessing.channels)
    shrunk = preprocessing.shrink(image)
    placed = preprocessing.place(image)
    assert placed.dtype == torch.uint8
    assert placed.shape == (preprocessing.channels, *preprocessing.image_size)
    assert torch.equal(preprocessing.place(shrunk), placed)
    assert np.array_equal(preprocessing.shrink(shrunk), shrunk)
    assert shrunk.size <= image.size
    assert min(shrunk.shape[:2]) <= max(preprocessing.stored_side, min(size))


def test_a_scaled_decoder_may_go_down_to_the_stored_side() -> None:
    preprocessing = Preprocessing(image_size=(96, 160))
    for height, width in SIZES[:4]:
        resized_height, resized_width = preprocessing.shrink(photo(height, width)).shape[:2]
        assert min(resized_height, resized_width) <= preprocessing.stored_side


def test_sizes_are_those_of_the_usual_pipeline() -> None:
    assert Preprocessing().stored_side == 256
    assert Preprocessing(crop_fraction=0.9).stored_side == 248  # timm's floor(224 / 0.9)
    assert Preprocessing().shrink(photo(375, 500)).shape == (256, 341, 3)


@pytest.mark.parametrize(("name", "filter_"), [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)])
def test_pixels_are_within_one_level_of_pillow(name: str, filter_: Image.Resampling) -> None:
    image = photo(375, 500)
    placed = Preprocessing(interpolation=name).place(image)  # type: ignore[arg-type]
    expected = Image.fromarray(image).resize((341, 256), filter_).crop((58, 16, 58 + 224, 16 + 224))
    difference = placed.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1


def test_a_batch_is_its_images() -> None:
    preprocessing = Preprocessing(image_size=(48, 48))
    images = [photo(80, 100, seed=seed) for seed in range(3)]
    batch = preprocessing.place_batch(torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]))
    assert batch.is_contiguous()
    assert torch.equal(batch, torch.stack([preprocessing.place(image) for image in images]))


def test_read_only_and_reversed_arrays() -> None:
    image = photo(80, 100)
    expected = Preprocessing(image_size=(32, 32)).place(image)
    frozen = image.copy()
    frozen.flags.writeable = False
    assert torch.equal(Preprocessing(image_size=(32, 32)).place(frozen), expected)
    assert torch.equal(Preprocessing(image_size=(32, 32)).place(image[:, ::-1][:, ::-1]), expected)


@pytest.mark.parametrize("color", ["rgb", "grey"])
def test_normalise(color: str) -> None:
    channels = 3 if color == "rgb" else 1
    preprocessing = Preprocessing(image_size=(16, 16), color=color, mean=IMAGENET_MEAN[:channels], std=IMAGENET_STD[:channels])  # type: ignore[arg-type]
    images_u8 = torch.randint(0, 256, (5, channels, 16, 16), dtype=torch.uint8)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    expected = (images_u8.double() / 255 - mean) / std
    result = preprocessing.normalise(images_u8)
    assert result.dtype == torch.float32
    assert torch.allclose(result.double(), expected, atol=1e-6)
    out = torch.empty_like(result)
    assert preprocessing.normalise(images_u8, out=out) is out
    assert torch.equal(out, result)


def test_json_round_trip() -> None:
    preprocessing = Preprocessing(image_size=(32, 48), mean=HALF, std=HALF)
    assert Preprocessing(**json.loads(json.dumps(asdict(preprocessing)))) == preprocessing


@pytest.mark.parametrize(
    "wrong",
    [{"mean": (0.5,)}, {"std": (0.0, 1.0, 1.0)}, {"crop_fraction": 0.0}, {"image_size": (0, 4)}, {"resize": "stretch"}, {"color": "grey"}],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Preprocessing(**wrong)  # type: ignore[arg-type]


def test_wrong_images_are_refused() -> None:
    for shape, dtype in (((4, 4), np.uint8), ((4, 4, 1), np.uint8), ((4, 4, 3), np.float32), ((0, 4, 3), np.uint8)):
        with pytest.raises(DataError):
            Preprocessing().place(np.zeros(shape, dtype))
