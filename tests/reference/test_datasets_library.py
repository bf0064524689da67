"""`hf:name` with the real `datasets` library, on a folder of Parquet as the hub holds it."""

from __future__ import annotations

import numpy as np
import pytest

from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import load_data
from kawara.data.synthetic import make_image_folder
from kawara.errors import DataError

datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")

RGB = Preprocessing((32, 32), crop_fraction=1.0)


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_parquet(folder, images, *, embedded):
    """Write the image folder `images` as a data set: bytes inside, as on the hub, or paths alone."""
    (folder / "data").mkdir(parents=True)
    for split, table in datasets.load_dataset("imagefolder", data_dir=str(images)).items():
        if embedded:
            table = table.with_format("arrow").map(datasets.table.embed_table_storage, batched=True)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("embedded", [True, False])
def test_a_data_set_equals_the_folder_that_it_was_made_of(tmp_path, embedded):
    images = tmp_path / "images"
    make_image_folder(images, splits=("train", "val"), per_class=4)
    write_parquet(tmp_path / "shapes", images, embedded=embedded)
    wanted = load_data(images, RGB)
    if embedded:
        for file in images.rglob("*.png"):
            file.unlink()
    found = load_data(f"hf:{tmp_path / 'shapes'}", RGB)
    assert found.class_names == wanted.class_names
    assert {name: len(part) for name, part in found.splits.items()} == {"train": 12, "val": 12}
    for name, part in found.splits.items():
        same = sorted((int(label), part.store[index].tobytes()) for index, label in enumerate(part.labels))
        other = wanted.splits[name]
        assert same == sorted((int(label), other.store[index].tobytes()) for index, label in enumerate(other.labels))


def test_a_data_set_without_images_is_refused(tmp_path):
    (tmp_path / "numbers").mkdir()
    datasets.Dataset.from_dict({"x": np.arange(4), "label": [0, 1, 0, 1]}).to_parquet(tmp_path / "numbers" / "train.parquet")
    with pytest.raises(DataError, match="no column of the type image"):
        load_data(f"hf:{tmp_path / 'numbers'}", RGB)


def test_an_unknown_data_set_is_an_error_of_its_own(tmp_path):
    with pytest.raises(DataError, match="cannot be loaded"):
        load_data(f"hf:{tmp_path / 'nothing'}", RGB)
