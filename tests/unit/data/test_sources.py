"""Every kind of source is opened; every senseless one gives the error that says so."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kawara.data.archives import FolderSource
from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import load_data, open_data
from kawara.data.synthetic import encode, list_shapes, make_image_folder, shape_arrays, shape_image
from kawara.errors import DataError

RGB = Preprocessing((32, 32), crop_fraction=1.0)
GREY = Preprocessing((32, 32), "grey", crop_fraction=1.0, mean=(0.5,), std=(0.5,))
CLASSES = ("circle", "square", "triangle")


def sizes(data):
    return {name: len(split) for name, split in data.splits.items()}


def zip_folder(folder: Path, target: Path, *, prefix: str = "", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return target


def write_idx(path: Path, array: np.ndarray) -> None:
    content = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


# Image folders


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folder_with_splits(tmp_path, val):
    make_image_folder(tmp_path, splits=("train", val, "test"), per_class=4)
    data = load_data(tmp_path, RGB)
    assert data.class_names == CLASSES
    assert sizes(data) == {"train": 12, "val": 12, "test": 12}
    assert data.reported == "test"
    train = data.splits["train"]
    assert train.keys[0] == "train/circle/0000.png"
    np.testing.assert_array_equal(train.store[0], shape_image("circle", 0))
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.skipped == []


def test_train_and_val_report_val(tmp_path):
    data = load_data(make_image_folder(tmp_path, splits=("train", "val"), per_class=3), RGB)
    assert sizes(data) == {"train": 9, "val": 9}
    assert data.reported == "val"


def test_train_and_test_hold_out_a_part_of_train(tmp_path):
    data = load_data(make_image_folder(tmp_path, splits=("train", "test"), per_class=20), RGB)
    assert sizes(data)["test"] == 60
    assert sizes(data)["train"] + sizes(data)["val"] == 60
    assert set(data.splits["val"].labels.tolist()) == {0, 1, 2}
    assert all(key.startswith("train/") for key in data.splits["val"].keys)


def test_class_folders_alone_are_split_in_three(tmp_path):
    data = load_data(make_image_folder(tmp_path, per_class=20), RGB)
    assert sum(sizes(data).values()) == 60
    for split in data.splits.values():
        assert set(split.labels.tolist()) == {0, 1, 2}


def test_without_holding_out_everything_is_one_split(tmp_path):
    data = load_data(make_image_folder(tmp_path, per_class=4), RGB, hold_out=False)
    assert sizes(data) == {"all": 12}


def test_nested_folders_belong_to_the_class_above_and_wrapping_folders_are_passed_through(tmp_path):
    root = tmp_path / "download" / "pets-v1"
    make_image_folder(root / "train")
    make_image_folder(root / "train" / "circle" / "more" / "deeper", classes=("square",))
    listing = open_data(tmp_path)
    assert listing.class_names == CLASSES
    deep = [record for record in listing.records if "deeper" in record.key]
    assert len(deep) == 8
    assert {record.label for record in deep} == {"circle"}
    assert {record.split for record in listing.records} == {"train"}


def test_what_is_no_image_is_listed_and_what_is_hidden_is_not(tmp_path):
    make_image_folder(tmp_path)
    for name in (".DS_Store", "circle/._0000.png", "circle/Thumbs.db", "__MACOSX/circle/a.png", "square/.hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "circle" / "notes.txt").write_text("x")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "stray.png").write_bytes(encode(shape_image("ring", 0)))
    (tmp_path / "circle" / "link.png").symlink_to(tmp_path / "nowhere.png")
    listing = open_data(tmp_path)
    assert len(listing.records) == 24
    reasons = {file.path: file.reason for file in listing.skipped}
    assert set(reasons) == {"circle/notes.txt", "stray.png", "circle/link.png"}
    assert "suffix" in reasons["circle/notes.txt"]
    assert "outside any class folder" in reasons["stray.png"]
    assert "broken link" in reasons["circle/link.png"]


def test_a_loop_of_links_ends(tmp_path):
    make_image_folder(tmp_path)
    (tmp_path / "circle" / "again").symlink_to(tmp_path)
    assert len(open_data(tmp_path).records) == 24


def test_names_in_any_script(tmp_path):
    for name in ("瓦", "Dachziegel ü", "a b'c"):
        make_image_folder(tmp_path / "x", classes=("circle",), per_class=3)
        shutil.move(tmp_path / "x" / "circle", tmp_path / name)
    shutil.rmtree(tmp_path / "x")
    data = load_data(tmp_path, RGB)
    assert set(data.class_names) == {"瓦", "Dachziegel ü", "a b'c"}


def test_numbers_as_class_names_are_in_numerical_order(tmp_path):
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.png").write_bytes(encode(shape_image("circle", number)))
    assert open_data(tmp_path).class_names == tuple(str(number) for number in range(12))


def test_classes_json_gives_the_names_where_it_covers_all(tmp_path):
    make_image_folder(tmp_path, splits=("train", "val"), per_class=3)
    names = {"circle": "round", "square": "edgy", "triangle": "pointed", "other": "x"}
    (tmp_path / "classes.json").write_text(json.dumps(names))
    assert load_data(tmp_path, RGB).class_names == ("round", "edgy", "pointed")
    assert open_data(tmp_path / "val").class_names == ("round", "edgy", "pointed")
    (tmp_path / "classes.json").write_text(json.dumps({"circle": "round"}))
    assert load_data(tmp_path, RGB).class_names == CLASSES


def test_an_empty_class_folder_is_noted(tmp_path):
    make_image_folder(tmp_path)
    (tmp_path / "hexagon").mkdir()
    data = load_data(tmp_path, RGB)
    assert data.class_names == CLASSES
    assert any("hexagon" in note for note in data.notes)


# Zips


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("prefix", ["", "top/"])
def test_zip_of_a_folder_equals_the_folder(tmp_path, compression, prefix):
    folder = make_image_folder(tmp_path / "folder", splits=("train", "val"), per_class=3)
    data = load_data(folder, RGB)
    zipped = load_data(zip_folder(folder, tmp_path / "set.zip", prefix=prefix, compression=compression), RGB)
    assert zipped.class_names == data.class_names
    assert sizes(zipped) == sizes(data)
    np.testing.assert_array_equal(zipped.splits["val"].labels, data.splits["val"].labels)
    np.testing.assert_array_equal(zipped.splits["val"].store[4], data.splits["val"].store[4])


@pytest.mark.parametrize("prefixed", [True, False])
def test_folder_of_zips(tmp_path, prefixed):
    folder = make_image_folder(tmp_path / "folder", splits=("train", "test"), per_class=12)
    (tmp_path / "zips").mkdir()
    for split in ("train", "test"):
        zip_folder(folder / split, tmp_path / "zips" / f"{split}.zip", prefix=f"{split}/" if prefixed else "")
    data = load_data(tmp_path / "zips", RGB)
    assert data.class_names == CLASSES
    assert sizes(data)["test"] == 36
    assert sizes(data)["train"] + sizes(data)["val"] == 36


def test_damaged_members_of_a_zip_are_named(tmp_path):
    path = zip_folder(make_image_folder(tmp_path / "folder"), tmp_path / "set.zip")
    content = bytearray(path.read_bytes())
    position = content.find(b"IDAT", content.find(b"square/0003.png"))
    content[position + 20] ^= 0xFF
    path.write_bytes(bytes(content))
    data = load_data(path, RGB)
    assert [(file.path, "checksum" in file.reason) for file in data.skipped] == [("set.zip/square/0003.png", True)]
    path.write_bytes(bytes(content[:-40]))
    with pytest.raises(DataError, match="not a readable zip"):
        open_data(path)


# Arrays


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


# Tables


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("with_splits", [True, False])
def test_tables(tmp_path, kind, with_splits):
    make_image_folder(tmp_path / "images", splits=("train", "val"), per_class=6)
    rows = []
    for file in sorted((tmp_path / "images").rglob("*.png")):
        row = {"path": str(file.relative_to(tmp_path)), "label": file.parent.name}
        rows.append(row | ({"split": file.parent.parent.name} if with_splits else {}))
    rows.append({**rows[0], "path": "images/missing.png"})
    table = tmp_path / f"labels.{kind}"
    if kind == "jsonl":
        table.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    for spec in (table, tmp_path):
        data = load_data(spec, RGB)
        assert data.class_names == CLASSES
        assert sum(sizes(data).values()) == 36
        if with_splits:
            assert sizes(data) == {"train": 18, "val": 18}
        assert [file.path for file in data.skipped] == ["images/missing.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n", "no rows"),
        ("picture,label\na.png,x\n", "no column for the image file"),
        ("path,what\na.png,x\n", "no column for the class"),
        ("path,label\na.png,\n", "line 2: a row without a class"),
        ("path,label,split\na.png,x,holdout\n", "unknown split"),
        ("path,label\na.png,x\n", "None of the 1 files"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path / "labels.csv")


# Hugging Face


def test_hub_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'kawara\[data\]'"):
        open_data("hf:mnist")


def test_hub_finds_columns_by_type(monkeypatch):
    class ImageFeature:
        def __init__(self, decode=True):
            pass

    class ClassLabel:
        names = ("cat", "dog")

    class Table:
        features = {"picture": ImageFeature(), "kind": ClassLabel()}
        _fingerprint = "f"

        def __init__(self, count):
            self.rows = [
                {"picture": {"bytes": encode(shape_image("circle", i)), "path": None}, "kind": -1 if i == 5 else i % 2} for i in range(count)
            ]

        def cast_column(self, name, feature):
            return self

        def __getitem__(self, item):
            return [row[item] for row in self.rows] if isinstance(item, str) else self.rows[item]

    fake = types.SimpleNamespace(
        Image=ImageFeature,
        ClassLabel=ClassLabel,
        load_dataset=lambda name, configuration: {"train": Table(8), "validation": Table(4), "extra": Table(2)},
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    data = load_data("hf:some/set", RGB)
    assert data.class_names == ("cat", "dog")
    assert sizes(data) == {"train": 7, "val": 4}
    assert [file.path for file in data.skipped] == ["train[5]"]
    assert any("extra" in note for note in data.notes)
    np.testing.assert_array_equal(data.splits["val"].store[3], shape_image("circle", 3))


# Classes of a model


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


# Bad input


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
