"""Near-duplicates against a slow oracle, on planted copies, and on images that merely look alike."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from kawara.data import duplicates
from kawara.data.decode import decode
from kawara.data.duplicates import (
    find_near_pairs,
    mirror_mask,
    perceptual_hashes,
    sign,
    sign_array,
)


def scene(seed: int, height: int = 96, width: int = 128) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def altered(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Resized by 0.5 to 2, mirrored or not, brightness 0.85 to 1.15, JPEG of quality 30 to 95."""
    factor = rng.uniform(0.5, 2)
    image = image.resize((max(32, int(image.width * factor)), max(32, int(image.height * factor))), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = Image.fromarray((np.asarray(image) * rng.uniform(0.85, 1.15)).clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(30, 96)))
    return decode(buffer.getvalue(), "copy")


def signed(images) -> np.ndarray:
    return sign([np.asarray(image) for image in images])


def test_planted_copies_are_found_and_nothing_else():
    rng = np.random.default_rng(5)
    originals = [scene(seed) for seed in range(300)]
    copies = [altered(originals[row], rng) for row in range(100)]
    pairs = find_near_pairs(signed([*originals, *copies]))
    found = set(zip(pairs.first.tolist(), pairs.second.tolist()))
    planted = {(row, 300 + row) for row in range(100)}
    assert len(planted & found) >= 95
    assert not found - planted


def test_mirrored_copies_are_called_so():
    image = scene(1)
    pairs = find_near_pairs(signed([image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image]))
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.is_mirrored.tolist())) == [(0, 1, True), (0, 2, False), (1, 2, True)]


def test_the_hash_is_the_signs_of_the_cosine_transform():
    cells = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), dtype=np.uint8)
    for row, found in enumerate(perceptual_hashes(sign_array(cells))):
        expected = 0
        for u in range(8):
            for v in range(8):
                total = sum(
                    float(cells[row, y, x, 0]) * math.cos(math.pi * (2 * y + 1) * u / 32) * math.cos(math.pi * (2 * x + 1) * v / 32)
                    for y in range(16)
                    for x in range(16)
                )
                expected = 2 * expected + (total > 0 and (u, v) != (0, 0))
        assert int(found) == expected


def test_a_mirror_image_differs_in_the_bits_of_the_mask():
    cells = np.random.default_rng(1).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    plain, mirrored = perceptual_hashes(sign_array(cells)), perceptual_hashes(sign_array(np.ascontiguousarray(cells[:, :, ::-1])))
    assert (np.bitwise_count(plain ^ mirrored ^ mirror_mask()) <= 1).all()  # a frequency near 0 may round to either side


@pytest.mark.parametrize("block", [7, 1 << 22])
def test_the_tables_find_what_comparing_all_with_all_finds(monkeypatch, block):
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    rng = np.random.default_rng(2)
    hashes = rng.integers(0, 1 << 63, 40, dtype=np.uint64)
    near = hashes[rng.integers(0, 40, 60)]
    for _ in range(8):
        near = near ^ (np.uint64(1) << rng.integers(0, 64, 60, dtype=np.uint64))
    everything = np.concatenate([hashes, near])
    found = duplicates._candidates(everything, everything)
    assert found is not None
    expected = {
        (i, j) for j in range(100) for i in range(j) if bin(int(everything[i]) ^ int(everything[j])).count("1") <= duplicates.MAX_BITS_APART
    }
    assert set(zip(found[0].tolist(), found[1].tolist())) == expected
    assert len(expected) > 20


def test_the_same_shape_in_another_colour_is_no_copy():
    grey = np.asarray(scene(3).convert("L")).astype(np.float32)
    red, blue = (
        np.stack([grey * weight for weight in weights], axis=-1).astype(np.uint8) for weights in ((0.9, 0.3, 0.3), (0.45, 0.45, 0.9))
    )
    assert len(find_near_pairs(signed([red, blue])).first) == 0
    assert len(find_near_pairs(signed([red, np.asarray(Image.fromarray(red).convert("L").convert("RGB"))])).first) == 1


def test_pictures_of_next_to_nothing_are_left_alone():
    flat = [np.full((64, 64, 3), level, np.uint8) for level in (10, 11, 200)]
    assert len(find_near_pairs(signed(flat)).first) == 0


def test_a_fixed_camera_is_said_to_be_one(monkeypatch):
    monkeypatch.setattr(duplicates, "_MAX_CANDIDATES", 100)
    monkeypatch.setattr(duplicates, "_MAX_CANDIDATES_EACH", 1)
    base = np.asarray(scene(4)).astype(np.int16)
    rng = np.random.default_rng(0)
    frames = [(base + rng.integers(-3, 4, base.shape)).clip(0, 255).astype(np.uint8) for _ in range(60)]
    assert not find_near_pairs(signed(frames)).is_complete


@pytest.mark.parametrize("shape", [(5, 32, 48, 3), (5, 28, 28, 1), (2, 100, 60, 3)])
def test_arrays_are_signed_as_files_are(shape):
    images = np.random.default_rng(6).integers(0, 256, shape, dtype=np.uint8)
    one_by_one = np.concatenate([sign([image, np.zeros((1, 1, shape[-1]), np.uint8)])[:1] for image in images])
    assert np.abs(sign_array(images).astype(int) - one_by_one).max() <= 1


def test_copies_of_real_photos_are_found_and_distinct_photos_are_not(shared, record_property):
    data = shared / "data"
    files = [*sorted((data / "imagenet_samples").glob("*.JPEG")), *sorted((data / "hymenoptera" / "train").glob("*/*.jpg"))]
    assert len(files) > 990
    rng = np.random.default_rng(7)
    photos = [decode(file.read_bytes(), file.name, min_side=128) for file in files]
    copies = [altered(Image.fromarray(decode(file.read_bytes(), file.name)), rng) for file in files[::5]]
    pairs = find_near_pairs(signed([*photos, *copies]))
    found = set(zip(pairs.first.tolist(), pairs.second.tolist()))
    planted = {(row, len(files) + position) for position, row in enumerate(range(0, len(files), 5))}
    for name, value in (
        ("photos", len(files)),
        ("planted", len(planted)),
        ("found", len(planted & found)),
        ("false", len(found - planted)),
    ):
        record_property(name, value)
    assert len(planted & found) >= 0.95 * len(planted)
    assert not found - planted
