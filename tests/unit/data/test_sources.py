"""Loading: classes of a model, senseless data sets, files that cannot be used, fingerprints."""

from __future__ import annotations

import os

import pytest

from kawara.data.archives import FolderSource
from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import load_data, open_data
from kawara.data.synthetic import encode, make_image_folder, shape_image
from kawara.errors import DataError

RGB = Preprocessing((32, 32), crop_fraction=1.0)
GREY = Preprocessing((32, 32), "grey", crop_fraction=1.0, mean=(0.5,), std=(0.5,))
CLASSES = ("circle", "square", "triangle")


def sizes(data):
    return {name: len(split) for name, split in data.splits.items()}


def test_labels_follow_the_classes_of_a_model(tmp_path):
    make_image_folder(tmp_path, classes=("triangle", "circle"), per_class=3)
    names = ("square", "triangle", "ring", "circle")
    data = load_data(tmp_path, RGB, class_names=names, hold_out=False)
    assert data.class_names == names
    assert data.splits["all"].labels.tolist() == [3, 3, 3, 1, 1, 1]
    with pytest.raises(DataError, match="classes that the model does not know") as caught:
        load_data(tmp_path, RGB, class_names=("circle", "cube"), hold_out=False)
    assert "triangle" in str(caught.value.got)
    assert "cube" in str(caught.value.allowed)


def test_one_class_is_enough_to_evaluate(tmp_path):
    make_image_folder(tmp_path, classes=("circle",), per_class=3)
    assert sizes(load_data(tmp_path, RGB, class_names=CLASSES, hold_out=False)) == {"all": 3}


def test_bad_paths(tmp_path):
    make_image_folder(tmp_path / "tiles")
    with pytest.raises(DataError, match="does not exist") as caught:
        open_data(tmp_path / "tile")
    assert caught.value.remedy == str(tmp_path / "tiles")
    with pytest.raises(DataError, match="a single image, not a data set"):
        open_data(tmp_path / "tiles" / "circle" / "0000.png")
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(DataError, match="not a data set"):
        open_data(tmp_path / "notes.doc")


def test_folders_without_images(tmp_path):
    with pytest.raises(DataError, match="no images") as caught:
        open_data(tmp_path)
    assert "empty" in str(caught.value.got)
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.txt").write_text("x")
    with pytest.raises(DataError, match="no images") as caught:
        open_data(tmp_path)
    assert ".txt" in str(caught.value.got)


def test_images_without_class_folders(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(shape_image("circle", 0)))
    with pytest.raises(DataError, match="not in class folders"):
        open_data(tmp_path)


def test_one_class_only(tmp_path):
    make_image_folder(tmp_path, classes=("circle",))
    with pytest.raises(DataError, match="two classes"):
        load_data(tmp_path, RGB)


def test_classes_of_val_that_are_not_in_train(tmp_path):
    make_image_folder(tmp_path, splits=("train",))
    make_image_folder(tmp_path, classes=("circle", "heart"), splits=("val",))
    with pytest.raises(DataError, match="not in train") as caught:
        load_data(tmp_path, RGB)
    assert "heart" in str(caught.value.got)
    assert "circle" not in str(caught.value.got)
    assert "triangle" in str(caught.value.allowed)


def test_unusable_files_are_counted_and_named_and_replaced_by_nothing(tmp_path):
    make_image_folder(tmp_path, splits=("train", "val"), per_class=5, format="JPEG")
    whole = (tmp_path / "train/circle/0001.jpg").read_bytes()
    (tmp_path / "train/circle/0001.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/square/0002.jpg").write_bytes(b"")
    (tmp_path / "val/square/0000.jpg").write_bytes(b"no image")
    data = load_data(tmp_path, RGB)
    assert sizes(data) == {"train": 13, "val": 14}
    reasons = {file.path: file.reason for file in data.skipped}
    assert set(reasons) == {"train/circle/0001.jpg", "train/square/0002.jpg", "val/square/0000.jpg"}
    assert "truncated" in reasons["train/circle/0001.jpg"]
    assert "empty" in reasons["train/square/0002.jpg"]
    assert not set(reasons) & {*data.splits["train"].keys, *data.splits["val"].keys}
    again = load_data(tmp_path, RGB)
    assert again.skipped == data.skipped
    assert again.fingerprint == data.fingerprint


def test_a_class_that_fails_as_a_whole(tmp_path):
    make_image_folder(tmp_path)
    for file in (tmp_path / "square").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="No image of the class 'square'"):
        load_data(tmp_path, RGB)


def test_a_file_that_cannot_be_read_is_skipped_and_taken_up_again_when_it_can(tmp_path, monkeypatch):
    make_image_folder(tmp_path)
    read = FolderSource.read

    def refuse(self, member):
        if member == "circle/0000.png":
            raise PermissionError(13, "Permission denied")
        return read(self, member)

    monkeypatch.setattr(FolderSource, "read", refuse)
    for _ in range(2):
        skipped = load_data(tmp_path, RGB).skipped
        assert [(file.path, file.reason) for file in skipped] == [("circle/0000.png", "cannot be read (Permission denied)")]
    monkeypatch.undo()
    assert load_data(tmp_path, RGB).skipped == []


def test_the_fingerprint_tells_data_sets_apart(tmp_path):
    make_image_folder(tmp_path / "a", per_class=10)
    make_image_folder(tmp_path / "b", per_class=10)
    first, same = (load_data(tmp_path / name, RGB).fingerprint for name in "ab")
    assert first == same
    assert load_data(tmp_path / "a", RGB, seed=1).fingerprint != first
    os.replace(tmp_path / "b/circle/0000.png", tmp_path / "b/square/other.png")
    assert load_data(tmp_path / "b", RGB).fingerprint != first


def test_preprocessing_may_be_chosen_from_the_listing(tmp_path):
    make_image_folder(tmp_path)
    data = load_data(tmp_path, lambda listing: GREY if listing.num_images == 24 else RGB)
    assert data.preprocessing == GREY
    assert data.color == "grey"
    assert data.splits["train"].store.tensor.shape[1] == 1
