"""Operations against Pillow's own, levels against their golden values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from kawara.data import color_ops, point_ops, warp
from kawara.data.rand_augment import OPERATIONS, RandAugmentConfig, RandAugmentDraw, argument, draw, rand_augment, streams
from kawara.data.randomness import uniforms
from kawara.errors import ConfigError

FILL = (124, 116, 104)
AFFINE = Image.Transform.AFFINE


def photos(side: int = 96, channels: int = 3) -> torch.Tensor:
    """Smooth images, a dark one, a flat one and noise: (n, C, side, side)."""
    random = np.random.default_rng(0)
    images = [
        np.asarray(Image.fromarray(random.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC))
        for _ in range(4)
    ]
    images += [images[0] // 4 + 20, np.full_like(images[0], 77), random.integers(0, 256, images[0].shape, dtype=np.uint8)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)[:, :channels].contiguous()


def as_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy() if len(image) == 3 else image[0].numpy())


def from_pil(image: Image.Image) -> torch.Tensor:
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)


def solarize_add(image: Image.Image, amount: int) -> Image.Image:
    table = [min(255, i + amount) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


POINT_OPERATIONS: list[tuple[Callable[..., torch.Tensor], Callable[[Image.Image, float], Image.Image], list[float]]] = [
    (point_ops.auto_contrast, lambda image, _: ImageOps.autocontrast(image), [0]),
    (point_ops.equalize, lambda image, _: ImageOps.equalize(image), [0]),
    (point_ops.invert, lambda image, _: ImageOps.invert(image), [0]),
    (point_ops.posterize, lambda image, bits: ImageOps.posterize(image, int(bits)), [1, 2, 4, 8]),
    (point_ops.solarize, lambda image, threshold: ImageOps.solarize(image, int(threshold)), [0, 26, 128, 255, 256]),
    (point_ops.solarize_add, lambda image, amount: solarize_add(image, int(amount)), [0, 99, 110, 128]),
    (point_ops.brightness, lambda image, factor: ImageEnhance.Brightness(image).enhance(factor), [0.1, 0.19, 1.0, 1.81, 1.9]),
    (point_ops.contrast, lambda image, factor: ImageEnhance.Contrast(image).enhance(factor), [0.1, 0.19, 1.0, 1.81, 1.9]),
]


@pytest.mark.parametrize("side", [32, 96])  # a batched look-up, and one plane at a time
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", POINT_OPERATIONS, ids=lambda operation: operation[0].__name__)
def test_point_operations_equal_pillow(operation: tuple, channels: int, side: int) -> None:
    ours, theirs, arguments = operation
    images = photos(side, channels)
    for value in arguments:
        result = ours(images, np.full(len(images), float(value)))
        for image, changed in zip(images, result):
            assert torch.equal(changed, from_pil(theirs(as_pil(image), value))), value


def test_zero_bits_is_black() -> None:
    assert point_ops.posterize(photos(), np.zeros(7)).max() == 0


@pytest.mark.parametrize("factor", [0.1, 0.19, 1.0, 1.81])
def test_color_and_sharpness_are_within_one_level_of_pillow(factor: float) -> None:
    images = photos()
    for ours, theirs in ((color_ops.saturation, ImageEnhance.Color), (color_ops.sharpness, ImageEnhance.Sharpness)):
        for image, changed in zip(images, ours(images, np.full(len(images), factor))):
            expected = from_pil(theirs(as_pil(image)).enhance(factor)).int()
            assert (changed.int() - expected).abs().max() <= 1
    for image, changed in zip(images, color_ops.grey(images)):
        assert torch.equal(changed, from_pil(as_pil(image).convert("L").convert("RGB")))


@pytest.mark.parametrize("side", [32, 96])
def test_blur_is_close_to_pillow(side: int) -> None:
    """Pillow approximates the Gaussian by boxes."""
    images = photos(side)[:5]
    for sigma in (0.1, 0.7, 2.0):
        for image, changed in zip(images, color_ops.gaussian_blur(images, np.full(5, sigma))):
            expected = from_pil(as_pil(image).filter(ImageFilter.GaussianBlur(sigma))).int()
            assert (changed.int() - expected).abs().float().mean() < 1.5


def shear(image: Image.Image, x: float, y: float, resample: Image.Resampling) -> Image.Image:
    return image.transform(image.size, AFFINE, (1, x, 0, y, 1, 0), resample=resample, fillcolor=FILL)


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize(("name", "resample"), [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_geometry_follows_pillow(name: str, resample: Image.Resampling, side: int, sign: int) -> None:
    images, fill = photos(side)[:5], torch.tensor(FILL, dtype=torch.uint8)
    slopes, degrees = np.full(5, sign * 0.27), np.full(5, sign * 27.0)
    pixels = np.full((5, 2), (sign * 13.0, -sign * 9.0))
    cases = (
        (warp.shear_x(images, slopes, fill, name), lambda image: shear(image, sign * 0.27, 0, resample)),  # type: ignore[arg-type]
        (warp.shear_y(images, slopes, fill, name), lambda image: shear(image, 0, sign * 0.27, resample)),  # type: ignore[arg-type]
        (warp.rotate(images, degrees, fill, name), lambda image: image.rotate(sign * 27, resample, fillcolor=FILL)),  # type: ignore[arg-type]
        (
            warp.translate(images, pixels, fill),
            lambda image: image.transform(image.size, AFFINE, (1, 0, sign * 13, 0, 1, -sign * 9), fillcolor=FILL),
        ),
    )
    for results, theirs in cases:
        for image, result in zip(images, results):
            difference = (result.int() - from_pil(theirs(as_pil(image))).int()).abs()
            assert difference.float().mean() < (2.5 if side == 32 else 1.0)  # edges to the fill are a larger part of small images
            assert difference.float().quantile(0.75) <= 2


def test_shear_agrees_with_the_general_warp() -> None:
    """A rotation by 0 with a shift is what a row of the shear does: both use one kernel and one rule for the outside."""
    images, fill = photos(32), torch.tensor(FILL, dtype=torch.uint8)
    shifted = warp.rotate_and_shift(images, np.zeros(7), np.full((7, 2), (2.25, 0.0)), fill, "bicubic")
    slope = 2.25 / 10.5
    sheared = warp.shear_x(images, np.full(7, slope), fill, "bicubic")
    assert (sheared[:, :, 10].int() - shifted[:, :, 10].int()).abs().max() <= 1


def test_translation_out_of_the_image() -> None:
    fill = torch.tensor(FILL, dtype=torch.uint8)
    assert (warp.translate(photos(32), np.full((7, 2), (40.0, 0.0)), fill) == fill[:, None, None]).all()


def test_argument_at_nine() -> None:
    golden = {
        "Rotate": 27.0,
        "Posterize": 1,
        "Solarize": 26,
        "SolarizeAdd": 99,
        "Color": 1.81,
        "Contrast": 1.81,
        "Brightness": 1.81,
        "Sharpness": 1.81,
        "ShearX": 0.27,
        "ShearY": 0.27,
        "TranslateX": 0.405,
        "TranslateY": 0.405,
        "AutoContrast": 0,
        "Equalize": 0,
        "Invert": 0,
    }
    assert set(golden) == set(OPERATIONS)
    assert len(OPERATIONS) == 15
    for name, value in golden.items():
        assert argument(name, np.array([9.0]), np.array([1.0]), increasing=True)[0] == pytest.approx(value), name
    negative = {"Rotate": -27.0, "Color": 0.19, "ShearX": -0.27, "TranslateY": -0.405, "Posterize": 1, "Solarize": 26}
    for name, value in negative.items():
        assert argument(name, np.array([9.0]), np.array([-1.0]), increasing=True)[0] == pytest.approx(value), name


def test_argument_at_the_ends() -> None:
    ends = np.array([0.0, 10.0])
    assert argument("Posterize", ends, np.ones(2), True).tolist() == [4, 0]
    assert argument("Solarize", ends, np.ones(2), True).tolist() == [256, 0]
    assert argument("SolarizeAdd", ends, np.ones(2), True).tolist() == [0, 110]
    assert argument("Contrast", ends, -np.ones(2), True).tolist() == pytest.approx([1.0, 0.1])


def test_reading_the_notation() -> None:
    assert RandAugmentConfig.parse("rand-m9-mstd0.5-inc1") == RandAugmentConfig(9, 0.5, 10, 2, 0.5, True)
    assert RandAugmentConfig.parse("m7-n3-p0.8-mmax9") == RandAugmentConfig(7, 0, 9, 3, 0.8, False)
    for wrong in ("m9-x3", "m", "m9-m8", "m11", "m9-p2", "m9-n0"):
        with pytest.raises(ConfigError):
            RandAugmentConfig.parse(wrong)


def test_draws_have_the_right_distribution() -> None:
    config = RandAugmentConfig.parse("m9-mstd0.5-inc1")
    rounds = draw(config, uniforms(0, 0, np.arange(6000), streams(config)))
    assert len(rounds) == 2
    for drawn in rounds:
        applied = drawn.operations >= 0
        assert 0.48 < applied.mean() < 0.52
        counts = np.bincount(drawn.operations[applied], minlength=15)
        assert counts.min() > 3000 / 15 * 0.75
        assert drawn.magnitudes.max() <= 10
        assert abs(drawn.magnitudes.mean() - 9) < 0.03
        assert 0.45 < drawn.magnitudes.std() < 0.51  # 0.5, a little less for the cut at 10
        assert abs((drawn.signs > 0).mean() - 0.5) < 0.03
    assert not np.array_equal(rounds[0].operations, rounds[1].operations)


@pytest.mark.parametrize("side", [32, 112])
def test_each_image_gets_the_operation_it_drew(side: int) -> None:
    images = photos(side)[4:5].repeat(15, 1, 1, 1)  # the dark one: AutoContrast changes it
    fill = torch.tensor(FILL, dtype=torch.uint8)
    config = RandAugmentConfig.parse("m9-inc1")
    order = np.random.default_rng(0).permutation(15)
    together = RandAugmentDraw(order, np.full(15, 9.0), np.ones(15))
    results = rand_augment(images.clone(), config, [together], fill, "bicubic")
    for place in range(15):
        alone = RandAugmentDraw(order[place : place + 1], np.array([9.0]), np.ones(1))
        expected = rand_augment(images[place : place + 1].clone(), config, [alone], fill, "bicubic")
        assert torch.equal(results[place], expected[0]), OPERATIONS[order[place]]
        assert not torch.equal(results[place], images[place]), OPERATIONS[order[place]]
    untouched = RandAugmentDraw(np.full(15, -1), np.full(15, 9.0), np.ones(15))
    assert torch.equal(rand_augment(images.clone(), config, [untouched], fill, "bicubic"), images)
