"""Image folders and zips of them: which file belongs to which class and split, and what is left out."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import load_data, open_data
from kawara.data.synthetic import encode, make_image_folder, shape_image
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
