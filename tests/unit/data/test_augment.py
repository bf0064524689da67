from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pytest
import torch

from kawara.data.augment import Augmentation, AugmentConfig
from kawara.data.crops import random_resized_box
from kawara.data.erasing import erasing_boxes
from kawara.data.preprocessing import Preprocessing
from kawara.errors import ConfigError

NOTHING = AugmentConfig(crop="none", flip=0.0)
DEIT = AugmentConfig(rand_augment="m9-mstd0.5-inc1", erasing=0.25)
EVERYTHING = AugmentConfig(
    vertical_flip=0.3,
    rotation_degrees=20,
    translation=0.1,
    border="reflect",
    noise_std=0.1,
    color_jitter=0.3,
    rand_augment="m9-mstd0.5-inc1",
    three_augment=True,
    erasing=0.5,
)


def batch_of(count: int, side: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def augmentation(config: AugmentConfig, side: int, channels: int = 3, seed: int = 0) -> Augmentation:
    preprocessing = Preprocessing(
        image_size=(side, side), color="rgb" if channels == 3 else "grey", crop_fraction=1.0, mean=(0.4,) * channels, std=(0.2,) * channels
    )
    return Augmentation(config, preprocessing, seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [24, 112])  # together, and one by one
@pytest.mark.parametrize("config", [DEIT, EVERYTHING], ids=["deit", "everything"])
def test_an_image_does_not_depend_on_its_batch(config: AugmentConfig, side: int, channels: int) -> None:
    augment = augmentation(config, side, channels)
    images, indices = batch_of(12, side, channels), np.arange(12) * 7 + 3
    original = images.clone()
    whole = augment.transform(images, 4, indices)
    assert torch.equal(images, original)
    assert whole.dtype == torch.float32
    order = np.random.default_rng(0).permutation(12)
    assert torch.equal(augment.transform(images[order], 4, indices[order]), whole[order])
    for part in (slice(0, 1), slice(1, 6), slice(6, 12)):
        assert torch.equal(augment.transform(images[part], 4, indices[part]), whole[part])


def test_buffers_given_are_used() -> None:
    augment, images, indices = augmentation(DEIT, 24), batch_of(6, 24), np.arange(6)
    expected = augment.transform(images, 0, indices)
    out = torch.empty(6, 3, 24, 24)
    assert augment.transform(images.clone(), 0, indices, out=out, overwrite=True) is out
    assert torch.equal(out, expected)
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment.transform(strided, 0, indices), expected)
    row = torch.empty(3, 24, 24, dtype=torch.uint8)
    picture = images[0].permute(1, 2, 0).numpy()
    assert augment.place(picture, 0, 5, out=row) is row
    assert torch.equal(row, augment.place(picture, 0, 5))


def test_every_image_has_a_draw_of_its_own() -> None:
    augment = augmentation(DEIT, 24)
    images = batch_of(1, 24).expand(40, -1, -1, -1)
    results = augment.transform(images, 0, np.arange(40))
    assert len({result.numpy().tobytes() for result in results}) > 30
    assert not torch.equal(augment.transform(images, 1, np.arange(40)), results)
    assert not torch.equal(augmentation(DEIT, 24, seed=1).transform(images, 0, np.arange(40)), results)


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(),
        AugmentConfig(crop="pad"),
        AugmentConfig(crop="pad", border="reflect"),
        AugmentConfig(crop="pad", border="mean"),
        NOTHING,
    ],
)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 56)])
def test_placing_a_batch_is_placing_its_images(config: AugmentConfig, height: int, width: int) -> None:
    augment = augmentation(config, 32)
    images = torch.randint(0, 256, (9, 3, height, width), dtype=torch.uint8)
    indices = np.arange(9) + 100
    together = augment.place_batch(images, 2, indices)
    one_by_one = [augment.place(image.permute(1, 2, 0).numpy(), 2, int(index)) for image, index in zip(images, indices)]
    assert together.is_contiguous()
    assert torch.equal(together, torch.stack(one_by_one))
    assert torch.equal(together[3:5], augment.place_batch(images[3:5], 2, indices[3:5]))


def test_threads_change_nothing() -> None:
    augment = augmentation(DEIT, 24)
    image = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda index: augment.place(image, 0, index), range(40)))
    assert all(torch.equal(result, augment.place(image, 0, index)) for index, result in enumerate(results))


def test_nothing_is_only_normalisation() -> None:
    augment, images = augmentation(NOTHING, 16), batch_of(5, 16)
    placed = augment.place_batch(images, 0, np.arange(5))
    assert torch.equal(placed, images)
    assert torch.equal(augment.transform(placed, 0, np.arange(5)), augment.preprocessing.normalise(images))


def test_pad_and_crop_offsets_are_uniform() -> None:
    augment = augmentation(AugmentConfig(crop="pad", pad_px=4, flip=0), 16)
    ramp = torch.arange(1, 257, dtype=torch.int32).clamp(max=255).to(torch.uint8).view(1, 1, 16, 16).expand(3000, 3, -1, -1)
    placed = augment.place_batch(ramp, 0, np.arange(3000))
    center = placed[:, 0, 8, 8].int() - 1  # never padding: 16·row + column
    tops, lefts = center // 16 - 4, center % 16 - 4
    for offsets in (tops, lefts):
        counts = torch.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert counts.min() > 3000 / 9 * 0.75
    assert (placed[tops == 0][:, :, :4] == 0).all()


def test_flip_probability() -> None:
    images = torch.zeros(2000, 3, 4, 4, dtype=torch.uint8)
    images[..., 0] = 255
    results = augmentation(AugmentConfig(crop="none", flip=0.5), 4).transform(images, 0, np.arange(2000))
    share = (results[:, 0, 0, 0] < results[:, 0, 0, 3]).float().mean()
    assert 0.46 < share < 0.54


def test_random_resized_crop_keeps_to_its_limits() -> None:
    for index in range(400):
        top, left, height, width = random_resized_box(300, 400, (0.08, 1.0), (3 / 4, 4 / 3), seed=0, epoch=0, index=index)
        assert 0 <= top <= 300 - height
        assert 0 <= left <= 400 - width
        assert 0.08 * 0.97 <= height * width / 120_000 <= 1.0
        assert 0.74 <= width / height <= 1.35


@pytest.mark.parametrize(
    ("size", "expected"), [((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13)), ((100, 100), (0, 0, 100, 100))]
)
def test_random_resized_crop_falls_back_to_the_centre(size: tuple[int, int], expected: tuple[int, int, int, int]) -> None:
    ratio = (3 / 4, 4 / 3)
    box = random_resized_box(*size, (1.0, 1.0), ratio, seed=0, epoch=0, index=0)
    if size == (100, 100):
        assert box[2] <= 100
        assert box[3] <= 100
    else:
        assert box == expected


def test_erased_boxes_keep_to_their_limits() -> None:
    boxes, places = erasing_boxes(224, 224, seed=0, epoch=0, indices=np.arange(3000))
    top, left, height, width = boxes.T
    assert (height < 224).all()
    assert (width < 224).all()
    assert ((top >= 0) & (top + height <= 224) & (left >= 0) & (left + width <= 224)).all()
    area = height * width / 224**2
    assert 0.019 < area.min() < 0.03
    assert 0.3 < area.max() < 0.335
    assert 0.28 < (height / width).min() < 0.35
    assert len(np.unique(places)) > 2900


def test_erasing_acts_after_normalisation_with_unit_noise() -> None:
    images = torch.zeros(1500, 3, 32, 32, dtype=torch.uint8)
    config = AugmentConfig(crop="none", flip=0, erasing=0.25)
    results = augmentation(config, 32).transform(images, 0, np.arange(1500))
    untouched = -0.4 / 0.2
    changed = (results - untouched).abs() > 1e-6
    assert 0.21 < changed.flatten(1).any(1).float().mean() < 0.29
    noise = results[changed]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_noise_has_the_asked_strength() -> None:
    images = torch.full((64, 3, 32, 32), 100, dtype=torch.uint8)
    results = augmentation(AugmentConfig(crop="none", flip=0, noise_std=0.3), 32).transform(images, 0, np.arange(64))
    assert abs((results - results.mean()).std() - 0.3) < 0.01
    assert not torch.equal(results[0], results[1])


def test_three_augment_does_one_of_three() -> None:
    images = batch_of(1, 32).expand(300, -1, -1, -1)
    augment = augmentation(AugmentConfig(crop="none", flip=0, three_augment=True), 32)
    results = augment.transform(images, 0, np.arange(300))
    is_grey = ((results[:, 0] - results[:, 1]).abs().amax((1, 2)) < 1e-6).float().mean()
    solarised = torch.where(images[:1] < 128, images[:1], 255 - images[:1])
    is_solarised = ((results - augment.preprocessing.normalise(solarised)).abs().amax((1, 2, 3)) < 1e-6).float().mean()
    assert 0.25 < is_grey < 0.42
    assert 0.25 < is_solarised < 0.42


def test_configs_travel_as_json() -> None:
    assert AugmentConfig(**json.loads(json.dumps(asdict(DEIT)))) == DEIT


@pytest.mark.parametrize(
    "wrong",
    [
        {"rand_augment": "m9-foo1"},
        {"crop": "centre"},
        {"flip": 1.5},
        {"crop_scale": (0.5, 0.1)},
        {"crop_scale": (0.5, 1.5)},
        {"noise_std": -1.0},
        {"border": "wrap"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        AugmentConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("config", [DEIT, EVERYTHING], ids=["deit", "everything"])
def test_a_gpu_gives_the_same_images(config: AugmentConfig) -> None:
    augment = augmentation(config, 64)
    images, indices = batch_of(64, 64), np.arange(64)
    on_cpu, on_gpu = augment.transform(images, 0, indices), augment.transform(images.cuda(), 0, indices).cpu()
    level = 1 / (255 * 0.2)
    assert ((on_cpu - on_gpu).abs() <= 1.01 * level).float().mean() > 0.99
