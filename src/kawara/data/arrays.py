"""Data sets that come as whole arrays: idx files (the MNIST family), npz, scikit-learn's digits."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kawara.data.listing import ArrayPart, Listing, class_names_beside, display_names, sorted_classes, split_word
from kawara.errors import DataError

_IDX_NAME = re.compile(
    r"^(?P<prefix>.*?)(?P<split>train|t10k|test|valid|val)(?P<gap>[-_.])(?P<what>images|labels)(?P<rest>.*)$", re.IGNORECASE
)
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_NPZ_NAMES = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels"), ("train_x", "train_y"), ("X_train", "y_train")),
    "val": (("x_val", "y_val"), ("val_images", "val_labels"), ("x_valid", "y_valid"), ("X_val", "y_val")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels"), ("test_x", "test_y"), ("X_test", "y_test")),
    None: (("images", "labels"), ("x", "y"), ("X", "y"), ("data", "target"), ("image", "label")),
}


def is_idx_file(name: str) -> bool:
    """Tell whether `name` is that of an idx file of images or labels (train-images-idx3-ubyte.gz)."""
    return _IDX_NAME.match(name) is not None and "idx" in name.lower()


@dataclass
class _IdxPair:
    images: Path | None = None
    labels: Path | None = None


def list_idx(folder: Path, *, prefix: str | None = None) -> Listing:
    """List the idx files in `folder`, .gz or not. Raises DataError when they are incomplete or do not fit together."""
    pairs: dict[tuple[str, str], _IdxPair] = {}
    for path in sorted(folder.iterdir()):  # a plain file sorts before its .gz, and stays
        match = _IDX_NAME.match(path.name)
        if match is None or not is_idx_file(path.name) or (prefix is not None and match["prefix"] != prefix):
            continue
        pair = pairs.setdefault((match["prefix"], split_word(match["split"]) or "train"), _IdxPair())
        what = match["what"].lower()
        if getattr(pair, what) is None:
            setattr(pair, what, path)
    prefixes = sorted({found for found, _ in pairs})
    if len(prefixes) > 1:
        raise DataError(
            f"{folder} holds several data sets.", got=", ".join(prefixes), remedy="give one of its files, or put each set in a folder"
        )
    parts = []
    for (_, split), pair in pairs.items():
        if pair.images is None or pair.labels is None:
            there, missing = (pair.images, "labels") if pair.images else (pair.labels, "images")
            raise DataError(f"The {missing} that belong to {there} are missing.", remedy=f"put the idx file of the {missing} beside it")
        parts.append(_part(pair.images.name, split, read_idx(pair.images), read_idx(pair.labels)))
    return _listing(str(folder), "idx files", parts, names=class_names_beside(folder))


def idx_prefix(name: str) -> str:
    """Return what stands before "train" or "t10k" in the name of an idx file."""
    match = _IDX_NAME.match(name)
    return match["prefix"] if match else ""


def read_idx(path: Path) -> npt.NDArray[Any]:
    """Return the array in an idx file, gzipped or not. Raises DataError when it is damaged or not an idx file."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: it is damaged or truncated.", got=error, remedy="download it again") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise DataError(
            f"{path} is not an idx file.", got=f"first bytes {content[:4].hex() or '(none)'}", allowed="0000 08 and the number of axes"
        )
    num_axes = content[3]
    header = 4 + 4 * num_axes
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4"))
    dtype = np.dtype(_IDX_TYPES[content[2]])
    expected = header + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(shape) != num_axes or len(content) < expected:
        raise DataError(
            f"{path} is truncated.", got=f"{len(content)} bytes", allowed=f"{expected} bytes for {shape}", remedy="download it again"
        )
    return np.frombuffer(content, dtype, offset=header, count=int(np.prod(shape, dtype=np.int64))).reshape(shape)


def list_npz(path: Path) -> Listing:
    """List the arrays of an .npz file. Raises DataError for unknown names, shapes that do not fit, or pickled content."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
            parts: list[tuple[str, str | None, npt.NDArray[Any], npt.NDArray[Any]]] = []
            for split, candidates in _NPZ_NAMES.items():
                found = next(((x, y) for x, y in candidates if x in names and y in names), None)
                if found is not None:
                    parts.append((f"{path.name}:{found[0]}", split, archive[found[0]], archive[found[1]]))
            given = [str(name) for name in archive["class_names"]] if "class_names" in names else None
    except ValueError as error:
        raise DataError(f"{path} cannot be read safely.", got=error, allowed="arrays of numbers or text, nothing pickled") from None
    except (OSError, EOFError, zlib.error, KeyError, Exception) as error:  # zipfile.BadZipFile and what NumPy makes of a torn file
        raise DataError(f"{path} is not a readable .npz file.", got=error, remedy="download or make it again") from None
    if not parts:
        raise DataError(
            f"{path} has no arrays of images and labels that kawara knows.",
            got=", ".join(sorted(names)),
            allowed="x_train, y_train, x_test, y_test; or train_images, train_labels, val_…, test_…; or images, labels",
        )
    if any(split is not None for _, split, _, _ in parts):
        parts = [part for part in parts if part[1] is not None]
    built = [_part(name, split, images, labels) for name, split, images, labels in parts]
    mapping = {str(index): name for index, name in enumerate(given)} if given else class_names_beside(path.parent)
    return _listing(str(path), "npz arrays", built, names=mapping)


def list_digits() -> Listing:
    """List the 1,797 handwritten digits of 8×8 pixels that scikit-learn carries, their range 0–16 stretched to 0–255."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images_u8 = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return _listing("digits", "scikit-learn's handwritten digits", [_part("digits", None, images_u8, digits.target)], names=None)


_RawPart = tuple[str, str | None, npt.NDArray[np.uint8], npt.NDArray[Any]]


def _part(name: str, split: str | None, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> _RawPart:
    images_u8 = _as_images(name, images)
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not (np.count_nonzero(labels, axis=1) == 1).all():
            raise DataError(
                f"{name}: an image has several labels or none.", got=f"labels {labels.shape}", allowed="one class for each image"
            )
        labels = labels.argmax(axis=1)
    labels = labels.reshape(len(labels), -1)[:, 0] if labels.ndim == 2 else labels
    if labels.ndim != 1 or len(labels) != len(images_u8):
        raise DataError(f"{name}: images and labels do not fit together.", got=f"{len(images_u8)} images, labels {labels.shape}")
    if len(labels) == 0:
        raise DataError(f"{name}: there are no images.", got=f"an array of shape {images.shape}")
    return name, split, images_u8, labels


def _as_images(name: str, images: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return (n, H, W, 1|3) uint8 from (n, H, W), (n, H, W, 1|3) or (n, 1|3, H, W); floats lie in [0, 1] or [0, 255]."""
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    elif images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"{name} does not hold images.", got=f"shape {images.shape}", allowed="(n, H, W), (n, H, W, 1 or 3) or (n, 1 or 3, H, W)"
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iufb" or images.size == 0:
        raise DataError(f"{name} does not hold images.", got=f"{images.dtype} of shape {images.shape}", allowed="numbers")
    lowest, highest = float(images.min()), float(images.max())
    if not (lowest >= 0 and highest <= 255):
        raise DataError(f"{name}: pixels outside the range.", got=f"{lowest:g} to {highest:g}", allowed="0 to 255, or floats from 0 to 1")
    scale = 255.0 if images.dtype.kind in "fb" and highest <= 1 else 1.0
    return np.rint(images.astype(np.float32) * scale).astype(np.uint8)


def _listing(spec: str, description: str, raw: list[_RawPart], *, names: Mapping[str, str] | None) -> Listing:
    texts = [_label_texts(name, labels) for name, _, _, labels in raw]
    trained = [values for (_, split, _, _), (values, _) in zip(raw, texts) if split in ("train", None)]
    keys = sorted_classes(text for values in (trained or [values for values, _ in texts]) for text in values)
    extra = sorted_classes(text for values, _ in texts for text in values if text not in keys)
    keys += extra  # told apart by load_data, which names both lists
    position = {key: index for index, key in enumerate(keys)}
    arrays = [
        ArrayPart(name, split, images_u8, np.array([position[text] for text in values], dtype=np.int64)[inverse])
        for (name, split, images_u8, _), (values, inverse) in zip(raw, texts)
    ]
    return Listing(spec, description, keys, display_names(keys, names), arrays=arrays)


def _label_texts(name: str, labels: npt.NDArray[Any]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the distinct labels as text and, for each image, the position of its own among them."""
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iubUS":
        raise DataError(f"{name}: labels that are no classes.", got=str(labels.dtype), allowed="whole numbers or text")
    values, inverse = np.unique(labels, return_inverse=True)
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()], inverse.reshape(-1)
