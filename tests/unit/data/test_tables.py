"""Tables of images (CSV, TSV, JSONL) and Hugging Face data sets."""

from __future__ import annotations

import csv
import json
import sys
import types
from typing import ClassVar

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
        features: ClassVar = {"picture": ImageFeature(), "kind": ClassLabel()}
        _fingerprint = "f"

        def __init__(self, count):
            self.rows = [
                {"picture": {"bytes": encode(shape_image("circle", i)), "path": None}, "kind": -1 if i == 5 else i % 2}
                for i in range(count)
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
