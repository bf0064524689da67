"""Decoded once and kept; never stale, never half-written, within its bound."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from kawara.data import cache as module
from kawara.data.decode import decode
from kawara.data.pixel_file import SUFFIX, NewPixelFile
from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import load_data
from kawara.data.stores import DecodingStore, MappedStore, TensorStore
from kawara.data.synthetic import encode, make_image_folder, shape_image
from kawara.files import held

SMALL = Preprocessing((32, 32), crop_fraction=1.0)
PHOTOS = Preprocessing((48, 48), crop_fraction=0.75)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("KAWARA_CACHE")
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    return make_image_folder(tmp_path / "small", splits=("train", "val"), per_class=4)


@pytest.fixture
def photos(tmp_path):
    """Images of several sizes, larger than what counts as small."""
    for number, size in enumerate([(70, 90), (200, 140), (130, 130), (90, 300)]):
        make_image_folder(tmp_path / "photos" / "a", classes=("circle", "square"), per_class=3, size=size, seed=number, format="JPEG")
        for name in ("circle", "square"):
            (tmp_path / "photos" / "a" / name).rename(tmp_path / "photos" / "a" / f"{name}{number}")
            (tmp_path / "photos" / name).mkdir(exist_ok=True)
            (tmp_path / "photos" / "a" / f"{name}{number}").rename(tmp_path / "photos" / name / str(number))
    (tmp_path / "photos" / "a").rmdir()
    return tmp_path / "photos"


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that were decoded."""
    names: list[str] = []

    def counting(data, name, **options):
        names.append(name)
        return decode(data, name, **options)

    monkeypatch.setattr(module, "decode", counting)
    return names


def all_images(data):
    return {key: split.store[i] for split in data.splits.values() for i, key in enumerate(split.keys)}


def files_in(cache):
    return sorted(path.name for path in cache.iterdir())


def test_small_images_of_one_size_become_one_tensor(folder, cache, decoded):
    for start in range(2):
        data = load_data(folder, SMALL, cache_dir=cache)
        store = data.splits["train"].store
        assert isinstance(store, TensorStore)
        assert store.uniform
        assert store.tensor.shape == (12, 3, 32, 32)
        assert store.tensor.is_contiguous()
        np.testing.assert_array_equal(store[5], shape_image("square", 1))
        assert len(decoded) == 24, f"start {start}"
    assert "memory" in data.storage
    assert str(cache) in data.storage


def test_photos_are_mapped_shrunk_and_equal_to_what_is_decoded_directly(photos, cache, decoded):
    for _ in range(2):
        data = load_data(photos, PHOTOS, cache_dir=cache, hold_out=False)
        split = data.splits["all"]
        assert isinstance(split.store, MappedStore)
        assert not split.store.uniform
        assert split.store.tensor is None
        for i, key in enumerate(split.keys):
            direct = decode((photos / key).read_bytes(), key, min_side=PHOTOS.stored_side)
            np.testing.assert_array_equal(split.store[i], PHOTOS.shrink(direct))
        assert len(decoded) == 24
    assert split.store[0].flags.writeable


def test_each_file_is_read_once_on_a_cold_start_and_not_at_all_on_a_warm_one(folder, cache, monkeypatch):
    from kawara.data.archives import FolderSource

    names: list[str] = []
    read = FolderSource.read
    monkeypatch.setattr(FolderSource, "read", lambda self, member: names.append(member) or read(self, member))
    load_data(folder, SMALL, cache_dir=cache)
    assert len(names) == len(set(names)) == 24
    load_data(folder, SMALL, cache_dir=cache)
    assert len(names) == 24


def test_neither_split_nor_seed_needs_another_cache(photos, cache):
    for seed in range(3):
        load_data(photos, PHOTOS, cache_dir=cache, seed=seed)
    assert len(files_in(cache)) == 1


def test_a_changed_file_is_noticed_even_with_its_old_size_and_date(folder, cache):
    path = folder / "train/circle/0002.png"
    before = load_data(folder, SMALL, cache_dir=cache)
    old = path.stat()
    content = encode(shape_image("ring", 7))
    content += bytes(max(0, old.st_size - len(content)))
    time.sleep(0.02)
    path.write_bytes(content)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    after = load_data(folder, SMALL, cache_dir=cache)
    np.testing.assert_array_equal(all_images(after)["train/circle/0002.png"], shape_image("ring", 7))
    assert after.fingerprint != before.fingerprint
    path.unlink()
    assert len(load_data(folder, SMALL, cache_dir=cache).splits["train"]) == 11


@pytest.mark.parametrize(
    "other", [Preprocessing((16, 16), crop_fraction=1.0), Preprocessing((32, 32), "grey", crop_fraction=1.0, mean=(0.5,), std=(0.5,))]
)
def test_another_geometry_or_colour_is_another_cache(folder, cache, other):
    for preprocessing in (SMALL, other, SMALL):
        data = load_data(folder, preprocessing, cache_dir=cache)
        assert data.splits["train"].store[0].shape[2] == preprocessing.channels
    assert len(files_in(cache)) == 2


def test_a_crash_in_the_middle_leaves_nothing_and_the_next_start_succeeds(folder, cache, monkeypatch):
    def crash(data, name, **options):
        if "square/0002" in name:
            raise KeyboardInterrupt
        return decode(data, name, **options)

    monkeypatch.setattr(module, "decode", crash)
    with pytest.raises(KeyboardInterrupt):
        load_data(folder, SMALL, cache_dir=cache, workers=2)
    assert files_in(cache) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kawara-data")]
    monkeypatch.undo()
    np.testing.assert_array_equal(load_data(folder, SMALL, cache_dir=cache).splits["train"].store[0], shape_image("circle", 0))


@pytest.mark.parametrize("harm", ["cut", "empty", "signature", "index"])
def test_a_damaged_cache_file_is_made_again(folder, cache, harm):
    before = all_images(load_data(folder, SMALL, cache_dir=cache))
    (name,) = files_in(cache)
    content = bytearray((cache / name).read_bytes())
    if harm == "cut":
        content = content[:-1000]
    elif harm == "empty":
        content = bytearray()
    elif harm == "signature":
        content[-1] ^= 1
    else:
        content[-300:-100] = bytes(200)
    (cache / name).write_bytes(bytes(content))
    after = all_images(load_data(folder, SMALL, cache_dir=cache))
    for key, image in before.items():
        np.testing.assert_array_equal(after[key], image)


def test_builders_at_the_same_time_do_not_harm_each_other(photos, cache):
    results: list[dict] = []

    def build():
        results.append(all_images(load_data(photos, PHOTOS, cache_dir=cache, workers=2, hold_out=False)))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(files_in(cache)) == 1
    for result in results:
        for key, image in results[0].items():
            np.testing.assert_array_equal(result[key], image)


def test_beyond_the_bound_images_are_decoded_when_needed_and_it_says_so(photos, cache, decoded):
    expected = all_images(load_data(photos, PHOTOS, cache_dir=cache / "large", hold_out=False))
    decoded.clear()
    data = load_data(photos, PHOTOS, cache_dir=cache / "tight", max_cache_bytes=50_000, hold_out=False)
    split = data.splits["all"]
    assert isinstance(split.store, DecodingStore)
    assert "each time" in data.storage
    assert "bound" in data.storage
    assert len(decoded) == 24
    for key, image in all_images(data).items():
        np.testing.assert_array_equal(image, expected[key])
    assert sum(path.stat().st_size for path in (cache / "tight").iterdir()) < 50_000
    decoded.clear()
    again = load_data(photos, PHOTOS, cache_dir=cache / "tight", max_cache_bytes=50_000, hold_out=False)
    assert decoded == []
    assert "each time" in again.storage
    assert again.fingerprint == data.fingerprint
    roomier = load_data(photos, PHOTOS, cache_dir=cache / "tight", hold_out=False)
    assert isinstance(roomier.splits["all"].store, MappedStore)


def test_an_unwritable_cache_folder_is_no_obstacle(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    data = load_data(folder, SMALL, cache_dir=tmp_path / "file" / "cache")
    assert "cannot write" in data.storage
    np.testing.assert_array_equal(data.splits["train"].store[0], shape_image("circle", 0))


def test_a_full_disk_is_no_obstacle(photos, cache, monkeypatch):
    def full(self, action):
        self.problem = "no space is left in the cache"
        return False

    monkeypatch.setattr(NewPixelFile, "_attempt", full)
    data = load_data(photos, PHOTOS, cache_dir=cache)
    assert "no space" in data.storage
    assert files_in(cache) == []
    assert data.splits["train"].store[0].shape[2] == 3


def test_what_was_not_used_for_longest_goes_first(folder, photos, cache):
    load_data(folder, SMALL, cache_dir=cache)
    (first,) = files_in(cache)
    os.utime(cache / first, (1, 1))
    load_data(photos, PHOTOS, cache_dir=cache, max_cache_bytes=700_000)
    assert first in files_in(cache)
    load_data(photos, Preprocessing((64, 64)), cache_dir=cache, max_cache_bytes=700_000)
    assert first not in files_in(cache)


def test_leavings_of_killed_builders_are_removed(folder, cache):
    cache.mkdir()
    for name, age in (("days-old", 2 * 24 * 3600), ("minutes-old", 300), ("at-work", 300), ("new", 5)):
        path = cache / f".{name}{SUFFIX}.1.x.partial"
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    with held(cache / f".at-work{SUFFIX}.1.x.partial"):  # as its builder does, while it lives
        load_data(folder, SMALL, cache_dir=cache)
    assert [name[1:8] for name in sorted(files_in(cache)) if name.startswith(".")] == ["at-work", "new.kaw"]


def test_a_cut_file_is_not_believed(folder, cache):
    whole = load_data(folder, SMALL, cache_dir=cache)
    (name,) = files_in(cache)
    content = (cache / name).read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        (cache / name).write_bytes(content[:length])
        again = load_data(folder, SMALL, cache_dir=cache)
        assert again.fingerprint == whole.fingerprint
        assert (cache / name).read_bytes() == content


def test_the_environment_names_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KAWARA_CACHE", str(tmp_path / "elsewhere"))
    load_data(folder, SMALL)
    assert len(files_in(tmp_path / "elsewhere")) == 1


def test_progress_is_told(folder, cache):
    calls: list[tuple[int, int, str]] = []
    load_data(folder, SMALL, cache_dir=cache, progress=lambda *call: calls.append(call))
    assert calls[-1][:2] == (24, 24)
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(photos, cache, workers):
    reference = all_images(load_data(photos, PHOTOS, cache_dir=cache / "r", workers=2))
    for key, image in all_images(load_data(photos, PHOTOS, cache_dir=cache / str(workers), workers=workers)).items():
        np.testing.assert_array_equal(image, reference[key])


def test_a_file_that_disappears_later_is_named(photos, cache):
    from kawara.errors import DecodeError

    split = load_data(photos, PHOTOS, cache_dir=cache, max_cache_bytes=1, hold_out=False).splits["all"]
    (photos / split.keys[3]).unlink()
    with pytest.raises(DecodeError, match="cannot be read any more"):
        split.store[3]
