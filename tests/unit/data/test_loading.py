"""Batches depend on (seed, epoch, number) alone; errors name the image; threads end."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from kawara.data.augment import Augmentation, AugmentConfig
from kawara.data.loading import CHUNK_OF_FILES, EvalLoader, TrainLoader
from kawara.data.preprocessing import Preprocessing
from kawara.data.sampling import SamplerConfig, epoch_order
from kawara.data.sharing import Share
from kawara.data.sources import load_data
from kawara.data.synthetic import list_shapes, make_image_folder
from kawara.errors import ConfigError, DecodeError, InternalError

SMALL = Preprocessing((32, 32), crop_fraction=1.0)
PHOTOS = Preprocessing((48, 48), crop_fraction=0.75)
AUGMENT = {
    "tensor": AugmentConfig(crop="pad", pad_px=4, flip=0.5),
    "files": AugmentConfig(crop="random_resized", flip=0.5, color_jitter=0.3),
}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """A split of each kind: small images in one tensor, and photos of several sizes in a mapped file."""
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate([(70, 90), (120, 80)]):
        make_image_folder(folder / f"shape{number}", classes=("circle", "square"), per_class=30, size=size, seed=number)
    data = load_data(folder, PHOTOS, cache_dir=tmp_path_factory.mktemp("cache"), hold_out=False)
    return {"tensor": load_data(list_shapes(120), SMALL, hold_out=False).splits["all"], "files": data.splits["all"]}


def loader(splits, kind, **options):
    preprocessing = SMALL if kind == "tensor" else PHOTOS
    settings = {"batch_size": 40, "seed": 3, "workers": 2} | options
    return TrainLoader(splits[kind], Augmentation(AUGMENT[kind], preprocessing, seed=3), **settings)


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        for name in ("images", "labels", "indices"):
            assert torch.equal(getattr(batch, name), getattr(other, name)), name


def kawara_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("kawara-data")]


@pytest.mark.parametrize("kind", ["tensor", "files"])
@pytest.mark.parametrize("sampler", [SamplerConfig(), SamplerConfig(repeats=3), SamplerConfig(balanced=True)])
def test_batches_depend_neither_on_workers_nor_on_the_start(splits, kind, sampler):
    assert len(splits["files"]) > CHUNK_OF_FILES
    whole = list(loader(splits, kind, sampler=sampler, workers=1).epoch(2))
    assert len(whole) == 3
    for workers in (2, 5):
        assert_equal(list(loader(splits, kind, sampler=sampler, workers=workers).epoch(2)), whole)
    for start in range(4):
        assert_equal(list(loader(splits, kind, sampler=sampler).epoch(2, start=start)), whole[start:])


@pytest.mark.parametrize("kind", ["tensor", "files"])
def test_batches_are_what_the_parts_say(splits, kind):
    train = loader(splits, kind)
    order, draws = epoch_order(120, None, 5, 3, SamplerConfig())
    for number, batch in enumerate(train.epoch(5)):
        part = slice(number * 40, number * 40 + 40)
        np.testing.assert_array_equal(batch.indices.numpy(), order[part])
        np.testing.assert_array_equal(batch.labels.numpy(), splits[kind].labels[order[part]])
        placed = [train.augmentation.place(splits[kind].store[i], 5, d) for i, d in zip(order[part].tolist(), draws[part].tolist())]
        expected = train.augmentation.transform(torch.stack(placed), 5, draws[part])
        assert batch.images.dtype == torch.float32
        assert torch.allclose(batch.images, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["tensor", "files"])
def test_epochs_and_seeds_differ(splits, kind):
    first = next(iter(loader(splits, kind).epoch(0))).images
    assert not torch.equal(first, next(iter(loader(splits, kind).epoch(1))).images)
    assert not torch.equal(first, next(iter(loader(splits, kind, seed=4).epoch(0))).images)


def test_the_last_batch(splits):
    assert loader(splits, "tensor", batch_size=50).num_batches == 2
    assert [len(batch.labels) for batch in loader(splits, "tensor", batch_size=50).epoch(0)] == [50, 50]
    assert [len(batch.labels) for batch in loader(splits, "tensor", batch_size=50, drop_last=False).epoch(0)] == [50, 50, 20]
    for drop_last in (True, False):
        small = loader(splits, "tensor", batch_size=500, drop_last=drop_last)
        assert small.num_batches == 1
        assert [len(batch.labels) for batch in small.epoch(0)] == [120]


@pytest.mark.parametrize("kind", ["tensor", "files"])
@pytest.mark.parametrize("workers", [1, 3])
def test_evaluation_shows_the_whole_split_in_order(splits, kind, workers):
    preprocessing = SMALL if kind == "tensor" else PHOTOS
    evaluate = EvalLoader(splits[kind], preprocessing, batch_size=50, workers=workers)
    batches = list(evaluate)
    assert [len(batch.labels) for batch in batches] == [50, 50, 20]
    assert len(evaluate) == evaluate.num_batches == 3
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(120))
    np.testing.assert_array_equal(torch.cat([batch.labels for batch in batches]).numpy(), splits[kind].labels)
    images = torch.cat([batch.images for batch in batches])
    for i in (0, 57, 119):
        assert torch.equal(images[i], preprocessing.normalise(preprocessing.place(splits[kind].store[i])[None])[0])


@pytest.mark.parametrize("kind", ["tensor", "files"])
@pytest.mark.parametrize("size", [2, 3])
def test_shares_are_rows_of_the_batches_of_one_process(splits, kind, size):
    shares = [Share(rank, size) for rank in range(size)]
    parts = zip(*(loader(splits, kind, share=share).epoch(1) for share in shares), strict=True)
    for whole, batches in zip(loader(splits, kind).epoch(1), parts, strict=True):
        for share, batch in zip(shares, batches, strict=True):
            rows = torch.from_numpy(share.rows(40))
            assert torch.equal(batch.images, whole.images[rows])
            assert torch.equal(batch.labels, whole.labels[rows])
            assert torch.equal(batch.whole, whole.indices)
    preprocessing = SMALL if kind == "tensor" else PHOTOS
    evaluation = [EvalLoader(splits[kind], preprocessing, batch_size=17, workers=2, share=share) for share in shares]  # the last has 1
    everything = torch.cat([batch.images for batch in EvalLoader(splits[kind], preprocessing, batch_size=17, workers=2)])
    for part in evaluation:
        assert torch.equal(torch.cat([batch.images for batch in part]), everything[torch.from_numpy(part.served)])
    assert set(np.concatenate([part.served for part in evaluation]).tolist()) == set(range(120))


def test_grey_images_as_colour_and_the_other_way_round():
    listing = list_shapes(40)
    grey = Preprocessing((32, 32), "grey", crop_fraction=1.0, mean=(0.5,), std=(0.5,))
    split = load_data(listing, grey, hold_out=False).splits["all"]
    assert next(iter(EvalLoader(split, grey, batch_size=40))).images.shape == (40, 1, 32, 32)


class _Failing:
    uniform, tensor = False, None

    def __init__(self, store, error):
        self.store, self.error = store, error

    def __len__(self):
        return len(self.store)

    def __getitem__(self, index):
        if index == 17:
            raise self.error
        return self.store[index]


@pytest.mark.parametrize(("error", "expected"), [(RuntimeError("boom"), InternalError), (DecodeError("a/17.png", "gone"), DecodeError)])
def test_errors_of_workers_arrive_with_the_name_of_the_image(splits, error, expected):
    import dataclasses

    split = dataclasses.replace(splits["files"], store=_Failing(splits["files"].store, error))
    train = TrainLoader(split, Augmentation(AUGMENT["files"], PHOTOS, 0), batch_size=40, seed=0, workers=2)
    with pytest.raises(expected, match=split.keys[17] if expected is InternalError else "a/17.png"):
        list(train.epoch(0))
    with pytest.raises(expected):
        list(EvalLoader(split, PHOTOS, batch_size=10))
    assert not kawara_threads()


def test_threads_end_when_the_consumer_stops_early(splits):
    for kind in ("tensor", "files"):
        batches = loader(splits, kind, batch_size=10).epoch(0)
        next(batches)
        assert kawara_threads()
        batches.close()
        assert not kawara_threads()
        for _ in loader(splits, kind, batch_size=10).epoch(0):
            break
        assert not kawara_threads()


def test_an_epoch_that_is_never_begun_starts_no_thread(splits):
    loader(splits, "tensor").epoch(0)
    assert not kawara_threads()


def test_the_trainers_threads_are_left_alone(splits):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in loader(splits, "files").epoch(0):
            assert torch.get_num_threads() == 2
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [2]
    finally:
        torch.set_num_threads(before)


def test_batches_are_made_ahead_but_not_without_bound(splits):
    asked: list[int] = []
    store = splits["files"].store

    class Counting(_Failing):
        def __getitem__(self, index):
            asked.append(index)
            return self.store[index]

    import dataclasses

    split = dataclasses.replace(splits["files"], store=Counting(store, None))
    train = TrainLoader(split, Augmentation(AUGMENT["files"], PHOTOS, 0), batch_size=10, seed=0, workers=1)
    batches = train.epoch(0)
    next(batches)
    deadline = time.monotonic() + 5
    while len(asked) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 20 <= len(asked) <= 40
    batches.close()


def test_wrong_settings(splits):
    with pytest.raises(ConfigError, match="batch_size"):
        loader(splits, "tensor", batch_size=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_batches_are_the_same(splits):
    for kind in ("tensor", "files"):
        for batch, other in zip(loader(splits, kind, device="cuda").epoch(0), loader(splits, kind).epoch(0)):
            assert batch.images.device.type == "cuda"
            assert torch.equal(batch.labels.cpu(), other.labels)
            assert (batch.images.cpu() - other.images).abs().mean() < 0.02
