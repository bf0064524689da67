"""Data sets that come as arrays: idx, npz, digits, synthetic shapes."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import load_data, open_data
from kawara.data.synthetic import list_shapes, shape_arrays
from kawara.errors import DataError

RGB = Preprocessing((32, 32), crop_fraction=1.0)
GREY = Preprocessing((32, 32), "grey", crop_fraction=1.0, mean=(0.5,), std=(0.5,))
CLASSES = ("circle", "square", "triangle")


def sizes(data):
    return {name: len(split) for name, split in data.splits.items()}


def write_idx(path: Path, array: np.ndarray) -> None:
    content = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(tmp_path, suffix):
    images, labels = shape_arrays(60, size=16)
    grey = images[..., 0]
    for name, part in (("train", slice(0, 40)), ("t10k", slice(40, 60))):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte{suffix}", grey[part])
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte{suffix}", labels[part])
    for spec in (tmp_path, tmp_path / f"train-images-idx3-ubyte{suffix}"):
        data = load_data(spec, GREY)
        assert data.class_names == tuple("01234567")
        assert sizes(data)["test"] == 20
        assert sizes(data)["train"] + sizes(data)["val"] == 40
        assert data.splits["test"].store.tensor.shape == (20, 1, 16, 16)
        np.testing.assert_array_equal(data.splits["test"].store[3][..., 0], grey[43])
        np.testing.assert_array_equal(data.splits["test"].labels, labels[40:])
    (tmp_path / "classes.txt").write_text("\n".join("abcdefgh"))
    assert open_data(tmp_path).class_names == tuple("abcdefgh")


def test_idx_files_that_do_not_fit(tmp_path):
    images = np.zeros((4, 5, 5), np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    with pytest.raises(DataError, match="labels that belong to"):
        open_data(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3, np.uint8))
    with pytest.raises(DataError, match="do not fit together"):
        open_data(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes((tmp_path / "train-images-idx3-ubyte").read_bytes()[:-7])
    with pytest.raises(DataError, match="truncated"):
        open_data(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"<html>")
    with pytest.raises(DataError, match="not an idx file"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    "names", [("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels")]
)
def test_npz_with_splits(tmp_path, names):
    images, labels = shape_arrays(60, size=16)
    arrays = (images[:40], labels[:40, None], images[40:], labels[40:, None])
    np.savez(tmp_path / "set.npz", **dict(zip(names, arrays)))
    for spec in (tmp_path / "set.npz", tmp_path):
        data = load_data(spec, RGB)
        assert sizes(data)["test"] == 20
        np.testing.assert_array_equal(data.splits["test"].store[7], images[47])
        np.testing.assert_array_equal(data.splits["test"].labels, labels[40:])


def test_npz_of_other_shapes_and_types(tmp_path):
    images, labels = shape_arrays(48, size=16)
    path = tmp_path / "set.npz"
    one_hot = np.eye(8)[labels]
    for given in (images, images.transpose(0, 3, 1, 2), images / 255.0, images.astype(np.int32)):
        np.savez(path, images=given, labels=one_hot, class_names=np.array(list("abcdefgh")))
        data = load_data(path, RGB, hold_out=False)
        assert data.class_names == tuple("abcdefgh")
        np.testing.assert_array_equal(data.splits["all"].store[5], images[5])
    grey = load_data(path, GREY, hold_out=False).splits["all"].store
    from PIL import Image

    np.testing.assert_array_equal(grey[5][..., 0], np.asarray(Image.fromarray(images[5]).convert("L")))


def test_npz_that_cannot_be_used(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, images=np.array([{"a": 1}], dtype=object), labels=np.zeros(1))
    with pytest.raises(DataError, match="read safely"):
        open_data(path)
    np.savez(path, pictures=np.zeros((3, 4, 4)), labels=np.zeros(3))
    with pytest.raises(DataError, match="pictures"):
        open_data(path)
    np.savez(path, images=np.full((3, 4, 4), 3000), labels=np.zeros(3))
    with pytest.raises(DataError, match="outside the range"):
        open_data(path)
    np.savez(path, images=np.zeros((3, 4, 4)), labels=np.array([[1, 1], [0, 1], [1, 0]]))
    with pytest.raises(DataError, match="several labels"):
        open_data(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"\.npz"):
        open_data(path)


def test_digits():
    data = load_data("digits", Preprocessing((8, 8), "grey", crop_fraction=1.0, mean=(0.5,), std=(0.5,)))
    assert sum(sizes(data).values()) == 1797
    assert 140 < sizes(data)["test"] < 220
    assert data.class_names == tuple("0123456789")
    assert data.splits["train"].store.tensor.max() == 255
    for split in data.splits.values():
        assert set(split.labels.tolist()) == set(range(10))
    digests = [{digest.tobytes() for digest in split.digests} for split in data.splits.values()]
    assert not digests[0] & digests[1]
    assert not digests[0] & digests[2]


def test_synthetic_shapes_are_a_data_set():
    data = load_data(list_shapes(80), RGB)
    assert len(data.class_names) == 8
    assert sum(sizes(data).values()) == 80
