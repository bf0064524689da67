"""Real data made by others: awkward files, CIFAR-10 zips, Fashion-MNIST idx, folders of photos."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from kawara.data import decode as decode_module
from kawara.data.augment import Augmentation, AugmentConfig
from kawara.data.decode import decode
from kawara.data.loading import EvalLoader, TrainLoader
from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import load_data, open_data
from kawara.data.stores import MappedStore
from kawara.errors import DataError, DecodeError

GREY_28 = Preprocessing((28, 28), "grey", crop_fraction=1.0, mean=(0.5,), std=(0.5,))
RGB_32 = Preprocessing((32, 32), crop_fraction=1.0)
RGB_224 = Preprocessing((224, 224))

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF data")

# file: (height, width) of the upright picture
ODD = {
    "16bit.cropped.tif": (64, 64),
    "apng_mode_16bit.png": (64, 128),
    "chi.gif": (240, 320),
    "cmyk_reencoded.jpg": (240, 320),
    "dispose_bgnd.gif": (100, 100),
    "exif_imagemagick_orientation.png": (512, 512),
    "flower2.webp": (225, 300),
    "frozenpond.mpo": (480, 640),
    "hopper.bmp": (128, 128),
    "hopper.ppm": (128, 128),
    "hopper.webp": (128, 128),
    "hopper_16bit.pgm": (128, 128),
    "hopper_bad_exif.jpg": (500, 500),
    "hopper_gray.jpg": (128, 128),
    "hopper_orientation_3.jpg": (128, 128),
    "hopper_orientation_5.webp": (128, 128),
    "hopper_orientation_6.jpg": (128, 128),
    "icc_profile.png": (57, 57),
    "modeL_n02096051_Airedale.JPEG": (330, 500),
    "modeL_n02692877_airship.JPEG": (156, 350),
    "modeL_n02815834_beaker.JPEG": (221, 320),
    "multipage.tiff": (10, 10),
    "p_16.png": (128, 128),
    "pil123p.png": (150, 162),
    "pil123rgba.png": (150, 162),
    "png_named_as.jpg": (128, 128),
}
UNUSABLE = {"broken.png": "not an image", "empty.jpg": "empty", "truncated_60pct.jpg": "truncated"}


@pytest.fixture(scope="module")
def odd(shared):
    return shared / "data" / "odd"


def expected_pixels(path) -> np.ndarray:
    """Pillow's own way, with what is ours to choose: white under transparency, 16 bits by their range."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        grey = values >> (8 if values.max() > 4095 else 4)
        return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        ground = Image.new("RGB", rgba.size, "white")
        ground.paste(rgba, mask=rgba.getchannel("A"))
        image = ground
    return np.asarray(image.convert("RGB"))


def test_every_odd_file_is_accounted_for(odd):
    assert {path.name for path in odd.iterdir()} == {*ODD, *UNUSABLE}
    assert len(ODD) + len(UNUSABLE) == 29


@pytest.mark.parametrize("with_simplejpeg", [True, False])
@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_upright_and_right(odd, name, with_simplejpeg, monkeypatch):
    if not with_simplejpeg:
        monkeypatch.setattr(decode_module, "simplejpeg", None)
    image = decode((odd / name).read_bytes(), name)
    assert image.shape == (*ODD[name], 3)
    assert abs(image.astype(int) - expected_pixels(odd / name)).max() <= 1
    grey = decode((odd / name).read_bytes(), name, color="grey")
    np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(image).convert("L")))


@pytest.mark.parametrize("with_simplejpeg", [True, False])
@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_odd_files_are_named(odd, name, with_simplejpeg, monkeypatch):
    if not with_simplejpeg:
        monkeypatch.setattr(decode_module, "simplejpeg", None)
    for min_side in (None, 32):
        with pytest.raises(DecodeError, match=UNUSABLE[name]) as caught:
            decode((odd / name).read_bytes(), f"odd/{name}", min_side=min_side)
        assert f"odd/{name}" in str(caught.value)


def test_rotated_hoppers_are_the_same_picture(odd):
    """An independent look: turned upright, the copies look like the one that never was turned."""
    upright = decode((odd / "hopper.ppm").read_bytes(), "hopper.ppm").astype(float)
    for name in (
        "hopper_orientation_3.jpg",
        "hopper_orientation_6.jpg",
        "hopper_orientation_5.webp",
        "hopper_16bit.pgm",
        "hopper_gray.jpg",
    ):
        other = decode((odd / name).read_bytes(), name).astype(float)
        reference = upright @ [0.299, 0.587, 0.114] if (other[..., 0] == other[..., 1]).all() else upright
        other = other[..., 0] if reference.ndim == 2 else other
        agreement = np.corrcoef(other.ravel(), reference.ravel())[0, 1]
        assert agreement > 0.95, f"{name}: {agreement:.3f}"


def test_simplejpeg_and_pillow_agree_on_real_photos(shared, monkeypatch):
    if decode_module.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    files = sorted((shared / "data" / "hymenoptera" / "val").rglob("*.jpg"))[::8]
    for path in files:
        data = path.read_bytes()
        for min_side in (None, 100, 40):
            fast = decode(data, path.name, min_side=min_side)
            with monkeypatch.context() as patch:
                patch.setattr(decode_module, "simplejpeg", None)
                np.testing.assert_array_equal(fast, decode(data, path.name, min_side=min_side), err_msg=f"{path.name} {min_side}")


def test_a_folder_with_odd_files_among_photos(odd, shared, tmp_path):
    for number, name in enumerate(("ants", "bees")):
        folder = tmp_path / name
        folder.mkdir()
        for path in sorted((shared / "data/hymenoptera/val" / name).iterdir())[:12]:
            shutil.copy(path, folder / path.name)
        for path in sorted(odd.iterdir())[number::2]:
            shutil.copy(path, folder / path.name)
    data = load_data(tmp_path, RGB_224)
    assert {file.path.split("/")[1] for file in data.skipped} == set(UNUSABLE)
    assert sum(len(split) for split in data.splits.values()) == 24 + len(ODD)
    for split in data.splits.values():
        for batch in EvalLoader(split, RGB_224, batch_size=16, workers=2):
            assert batch.images.shape[1:] == (3, 224, 224)
            assert batch.images.isfinite().all()


def test_fashion_mnist(shared):
    data = load_data(shared / "data" / "fashion_mnist", GREY_28)
    assert data.class_names == tuple("0123456789")
    assert len(data.splits["test"]) == 9000
    assert len(data.splits["train"]) + len(data.splits["val"]) == 60_000
    assert 5700 < len(data.splits["val"]) < 6300
    counts = np.bincount(data.splits["train"].labels) + np.bincount(data.splits["val"].labels)
    assert counts.tolist() == [6000] * 10
    first = np.flatnonzero([key.endswith("[0]") for key in data.splits["test"].keys])[0]
    assert data.splits["test"].labels[first] == 9  # the official test set begins with an ankle boot
    train = TrainLoader(
        data.splits["train"], Augmentation(AugmentConfig(crop="pad", pad_px=2), GREY_28, 0), batch_size=512, seed=0, workers=2
    )
    batch = next(iter(train.epoch(0)))
    assert batch.images.shape == (512, 1, 28, 28)
    assert batch.images.aminmax() == pytest.approx((-1, 1), abs=1e-5)


def test_cifar10_zips(shared):
    listing = open_data(shared / "data" / "cifar10")
    assert listing.class_names == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert listing.num_images == 59_000
    assert listing.split_names == ["train", "test"]
    assert listing.skipped == []


def test_cifar10_test_zip_alone(shared):
    data = load_data(shared / "data" / "cifar10" / "test.zip", RGB_32, hold_out=False, workers=2)
    split = data.splits["test"]
    assert np.bincount(split.labels).tolist() == [900] * 10
    assert split.store.tensor.shape == (9000, 3, 32, 32)
    import zipfile

    with zipfile.ZipFile(shared / "data" / "cifar10" / "test.zip") as archive:
        for i in (0, 4321, 8999):
            member = split.keys[i].removeprefix("test.zip/")
            assert data.class_names[split.labels[i]] == member.split("/")[1]
            np.testing.assert_array_equal(split.store[i], np.asarray(Image.open(io.BytesIO(archive.read(member)))))


def test_hymenoptera(shared):
    data = load_data(shared / "data" / "hymenoptera", RGB_224, workers=2)
    assert data.class_names == ("ants", "bees")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 195, "val": 123}
    assert data.reported == "val"
    assert isinstance(data.splits["train"].store, MappedStore)
    config = AugmentConfig(crop="random_resized", flip=0.5)
    batches = [
        next(iter(TrainLoader(data.splits["train"], Augmentation(config, RGB_224, 0), batch_size=48, seed=0, workers=workers).epoch(0)))
        for workers in (1, 3)
    ]
    assert torch.equal(batches[0].images, batches[1].images)


def test_imagenette(shared):
    data = load_data(shared / "data" / "imagenette224", RGB_224, workers=2)
    assert "tench" in data.class_names
    assert "n01440764" not in data.class_names
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 1280, "val": 400}
    assert data.splits["val"].store.uniform
    val = load_data(shared / "data" / "imagenette224" / "val", RGB_224, class_names=data.class_names, hold_out=False, workers=2)
    np.testing.assert_array_equal(val.splits["all"].labels, data.splits["val"].labels)


def test_a_folder_of_images_without_classes_says_so(shared):
    with pytest.raises(DataError, match="not in class folders"):
        open_data(shared / "data" / "imagenet_samples")
