"""Open a data set, decode it and split it: the door to everything in this package.

What is there says `opening`; what the source names as splits is kept. With train and test, a part of train is held out as val; with
train and val, val is reported; with train alone or no splits at all, val and test are held out (see `splitting`).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kawara.data.cache import ProgressCallback, decode_files
from kawara.data.listing import IMAGE_SUFFIXES, SPLITS, ArrayPart, Listing, Record, SkippedFile
from kawara.data.opening import enumerate_names, open_data
from kawara.data.pools import num_cores
from kawara.data.preprocessing import Preprocessing
from kawara.data.splitting import hold_out as hold_out_by_content
from kawara.data.stores import ImageStore, TensorStore, tensor_from_arrays
from kawara.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "ImageData", "ImageSplit", "Listing", "Record", "SkippedFile", "load_data", "open_data"]

WHOLE = "all"


@dataclass
class ImageSplit:
    """One part of a data set. `labels` (n,) are positions in the class names, `digests` (n, 32) identify the content."""

    name: str
    store: ImageStore
    labels: npt.NDArray[np.int64]
    keys: list[str]
    digests: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Examined:
    """What is known of the usable images of a data set, in the order of the source, one row an image.

    `labels` are positions in `class_keys`; `traits`, `sizes` (as stored, height and width) and `signatures` are what `traits` and
    `duplicates` say of files. `signatures` is None for arrays, of which only those that need them are computed.
    """

    class_keys: tuple[str, ...]
    keys: Sequence[str]
    labels: npt.NDArray[np.int64]
    splits: npt.NDArray[np.str_]
    named_splits: tuple[str, ...]
    digests: npt.NDArray[np.uint8]
    traits: npt.NDArray[np.uint16]
    sizes: npt.NDArray[np.int32]
    signatures: npt.NDArray[np.uint8] | None


@dataclass
class ImageData:
    """A data set ready to be trained on. `skipped` are the files that are no part of it; `notes` are remarks for the screen.

    `fingerprint` is a digest of every image's name, content, class and split. `storage` says where the pixels are.
    """

    class_names: tuple[str, ...]
    splits: dict[str, ImageSplit]
    skipped: list[SkippedFile]
    fingerprint: str
    color: str
    description: str
    preprocessing: Preprocessing
    storage: str
    listing: Listing
    examined: Examined
    notes: list[str] = field(default_factory=list)

    @property
    def reported(self) -> str:
        """The name of the split that results are reported on: test where there is one, else val."""
        return next(name for name in ("test", "val", WHOLE, "train") if name in self.splits)


def load_data(
    spec: str | Path | Listing,
    preprocessing: Preprocessing | Callable[[Listing], Preprocessing],
    *,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    val_fraction: float = 0.1,
    max_cache_bytes: int | None = None,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
    class_names: Sequence[str] | None = None,
    hold_out: bool = True,
    only_examine: bool = False,
) -> ImageData:
    """Decode the data set at `spec` and split it.

    `preprocessing` may be a function that chooses one from the listing. `class_names` are those of a model: labels are positions in
    them. With `hold_out=False` no split is made up: images without one form a single split named "all". Files that cannot be decoded
    are listed in `skipped`, never replaced. Raises DataError when classes or splits do not make sense.

    With `only_examine` nothing is raised about the content, however poor it is, and pixels are not kept in the cache.
    """
    listing = spec if isinstance(spec, Listing) else open_data(spec)
    chosen = preprocessing if isinstance(preprocessing, Preprocessing) else preprocessing(listing)
    if not 0 < val_fraction <= 0.4:
        raise DataError("val_fraction is out of range.", got=val_fraction, allowed="more than 0, at most 0.4")
    pool = _from_records if listing.records else _from_arrays
    images = pool(listing, chosen, cache_dir, max_cache_bytes, workers or num_cores(), progress, not only_examine)
    if not images.labels and not only_examine:
        first = images.failed[0]
        raise DataError(f"No image in {listing.spec} can be used.", got=f"{len(images.failed)} files; {first.path}: {first.reason}")
    if class_names is None:
        if not only_examine:
            _check_classes(listing, images, one_is_enough=not hold_out)
        keys, names = _classes_of(listing, images)
    else:
        keys, names = _classes_of_model(listing, images, class_names)
    position = {key: index for index, key in enumerate(keys)}
    labels = np.array([position[label] for label in images.labels], dtype=np.int64)
    split_of = _assign(images, labels, seed, val_fraction, hold_out)
    splits = {}
    for name in (*SPLITS, WHOLE):
        chosen_positions = np.flatnonzero(split_of == name)
        if len(chosen_positions):
            splits[name] = ImageSplit(
                name,
                images.store(chosen_positions),
                labels[chosen_positions],
                [images.keys[i] for i in chosen_positions.tolist()],
                images.digests[chosen_positions],
            )
    return ImageData(
        class_names=names,
        splits=splits,
        skipped=[*listing.skipped, *images.failed],
        fingerprint=_fingerprint(images, split_of),
        color=chosen.color,
        description=f"{listing.description}, {len(labels):,} images, {len(names)} classes",
        preprocessing=chosen,
        storage=images.storage,
        listing=listing,
        examined=Examined(
            keys,
            images.keys,
            labels,
            split_of,
            tuple(name for name in SPLITS if name in images.splits),
            images.digests,
            images.traits,
            images.sizes,
            images.signatures,
        ),
        notes=list(listing.notes),
    )


@dataclass
class _Images:
    """All usable images of a listing in one row: class key, named split, key, digest; and the way to their pixels."""

    labels: list[str]
    splits: list[str | None]
    keys: list[str]
    digests: npt.NDArray[np.uint8]
    store: Callable[[npt.NDArray[np.int64]], ImageStore]
    storage: str
    traits: npt.NDArray[np.uint16]
    sizes: npt.NDArray[np.int32]
    signatures: npt.NDArray[np.uint8] | None
    failed: list[SkippedFile] = field(default_factory=list)


def _from_records(
    listing: Listing,
    preprocessing: Preprocessing,
    cache_dir: str | Path | None,
    max_cache_bytes: int | None,
    workers: int,
    progress: ProgressCallback | None,
    keep_pixels: bool,
) -> _Images:
    folder = None if cache_dir is None else Path(cache_dir)
    decoded = decode_files(
        listing.records,
        preprocessing,
        cache_dir=folder,
        max_cache_bytes=max_cache_bytes,
        workers=workers,
        progress=progress,
        keep_pixels=keep_pixels,
    )
    usable = np.array([i for i in range(len(listing.records)) if i not in decoded.failures], dtype=np.int64)
    records = [listing.records[i] for i in usable.tolist()]
    return _Images(
        [record.label for record in records],
        [record.split for record in records],
        [record.key for record in records],
        decoded.digests[usable],
        lambda positions: decoded.store(usable[positions]),
        decoded.storage,
        decoded.traits[usable],
        decoded.original_sizes[usable],
        decoded.signatures[usable],
        [SkippedFile(listing.records[i].key, failure.reason, failure.kind) for i, failure in sorted(decoded.failures.items())],
    )


def _from_arrays(
    listing: Listing,
    preprocessing: Preprocessing,
    cache_dir: str | Path | None,
    max_cache_bytes: int | None,
    workers: int,
    progress: ProgressCallback | None,
    keep_pixels: bool,
) -> _Images:
    keys: list[str] = []
    splits: list[str | None] = []
    digests: list[npt.NDArray[np.uint8]] = []
    for part in listing.arrays:
        keys += [f"{part.name}[{i}]" for i in range(len(part.labels))]
        splits += [part.split] * len(part.labels)
        digests.append(_pixel_digests(part))
    labels = np.concatenate([part.labels for part in listing.arrays])
    sizes = np.cumsum([0] + [len(part.labels) for part in listing.arrays])

    def store(positions: npt.NDArray[np.int64]) -> ImageStore:
        shapes = {part.images_u8.shape[1:3] for part in listing.arrays}
        pieces = []
        for part, start in zip(listing.arrays, sizes):
            inside = positions[(positions >= start) & (positions < start + len(part.labels))] - start
            if len(inside):
                pieces.append(part.images_u8 if len(inside) == len(part.labels) else part.images_u8[inside])
        if len(pieces) > 1 and len({piece.shape[1:] for piece in pieces}) > 1:
            raise DataError(f"The arrays of {listing.spec} that form one split differ in size.", got=sorted(shapes))
        together = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return TensorStore(tensor_from_arrays(together, preprocessing.channels))

    num_bytes = sum(part.images_u8.nbytes for part in listing.arrays)
    storage = f"all images in memory ({num_bytes / 1e6:,.0f} MB)"
    return _Images(
        [listing.class_keys[label] for label in labels.tolist()],
        splits,
        keys,
        np.concatenate(digests),
        store,
        storage,
        np.zeros(len(labels), np.uint16),
        np.concatenate([np.full((len(part.labels), 2), part.images_u8.shape[1:3], np.int32) for part in listing.arrays]),
        None,
    )


def _pixel_digests(part: ArrayPart) -> npt.NDArray[np.uint8]:
    """Return (n, 32) digests of the pixels of each image."""
    rows = np.ascontiguousarray(part.images_u8).reshape(len(part.images_u8), -1)
    start = hashlib.blake2b(repr(part.images_u8.shape[1:]).encode(), digest_size=32)
    digests = bytearray()
    for row in rows:
        digest = start.copy()
        digest.update(row.data)
        digests += digest.digest()
    return np.frombuffer(bytes(digests), np.uint8).reshape(-1, 32)


def _check_classes(listing: Listing, images: _Images, *, one_is_enough: bool) -> None:
    failures: dict[str, list[SkippedFile]] = defaultdict(list)
    if images.failed:
        label_of = {record.key: record.label for record in listing.records}
        for failed in images.failed:
            failures[label_of[failed.path]].append(failed)
    present = set(images.labels)
    for label, files in failures.items():
        if label not in present:
            raise DataError(
                f"No image of the class {label!r} can be used.",
                got=f"{len(files)} files; {files[0].path}: {files[0].reason}",
                remedy="replace the files, or remove the class",
            )
    if len(present) < 2 and not one_is_enough:
        got = f"one class: {next(iter(present))!r}"
        raise DataError(f"{listing.spec} does not have two classes to tell apart.", got=got, allowed="at least two classes, a folder each")
    trained = {label for label, split in zip(images.labels, images.splits) if split == "train"}
    for name in ("val", "test"):
        strangers = Counter(label for label, split in zip(images.labels, images.splits) if split == name and label not in trained)
        if trained and strangers:
            raise DataError(
                f"{listing.spec}: {name} has classes that are not in train.",
                got=f"only in {name}: {enumerate_names(sorted(strangers))}",
                allowed=f"classes of train: {enumerate_names(sorted(trained))}",
                remedy=f"give {name} and train the same class names",
            )


def _classes_of(listing: Listing, images: _Images) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return keys and names of the classes; of a source without files, those that have images."""
    if listing.records:
        return listing.class_keys, listing.class_names
    present = set(images.labels)
    kept = [i for i, key in enumerate(listing.class_keys) if key in present]
    return tuple(listing.class_keys[i] for i in kept), tuple(listing.class_names[i] for i in kept)


def _classes_of_model(listing: Listing, images: _Images, class_names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys of the listing's classes in the order of the model's, and the model's names."""
    present = set(images.labels)
    for names in (listing.class_names, listing.class_keys):
        key_of = dict(zip(names, listing.class_keys))
        if all(name in class_names for name, key in key_of.items() if key in present):
            return tuple(key_of.get(name, name) for name in class_names), tuple(class_names)
    shown = dict(zip(listing.class_keys, listing.class_names))
    raise DataError(
        f"{listing.spec} has classes that the model does not know.",
        got=enumerate_names([shown[key] for key in listing.class_keys if key in present and shown[key] not in class_names]),
        allowed=f"the model's classes: {enumerate_names(list(class_names))}",
        remedy="name the class folders as the model's classes; kawara evaluate --protocol knn needs no classes of the model",
    )


def _assign(images: _Images, labels: npt.NDArray[np.int64], seed: int, val_fraction: float, hold_out: bool) -> npt.NDArray[np.str_]:
    """Return the split of each image."""
    split_of = np.array([WHOLE if split is None else split for split in images.splits], dtype="<U5")
    named = set(np.unique(split_of).tolist()) - {WHOLE}
    if not hold_out or "val" in named or (named and "train" not in named):
        return split_of
    shared = split_of != "test"
    digests = [digest.tobytes() for digest in images.digests[shared]]
    test_fraction = 0.0 if "test" in named else val_fraction
    split_of[shared] = hold_out_by_content(digests, labels[shared], seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
    return split_of


def _fingerprint(images: _Images, split_of: npt.NDArray[np.str_]) -> str:
    lines = sorted(
        f"{key}\0{digest.tobytes().hex()}\0{label}\0{split}"
        for key, digest, label, split in zip(images.keys, images.digests, images.labels, split_of.tolist())
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
