"""What is there in a data set before any image is decoded: the common answer of every kind of source."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kawara.errors import DataError

SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "t10k": "test",
}
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".ico", ".qoi", ".pcx", ".sgi", ".heic", ".heif"),
    )
)
_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", "__macosx", "icon\r"))


@dataclass(frozen=True)
class SkippedFile:
    """A file that is no part of the data set, and why: in a sentence, and in one word."""

    path: str
    reason: str
    kind: str = "left-out"


class ByteSource(Protocol):
    """Something that gives the bytes of its members: a folder, a zip, a table. Called from many threads at once."""

    def read(self, member: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Record:
    """One image file: where its bytes come from and what it shows.

    `key` is its stable name in messages; `stamp` changes when the content does (size and times, or a checksum);
    `split` is None where the source does not say.
    """

    key: str
    label: str
    split: str | None
    source: ByteSource
    member: str
    stamp: str

    def read(self) -> bytes:
        """Return the bytes of the file. Raises OSError or DecodeError."""
        return self.source.read(self.member)


@dataclass(frozen=True)
class ArrayPart:
    """Images that come as one array: (n, H, W, 1|3) uint8 with (n,) labels as positions in the listing's classes."""

    name: str
    split: str | None
    images_u8: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


@dataclass
class Listing:
    """The content of a data set: either `records` (files) or `arrays`.

    `class_keys` are the names in the source, in the order of the labels; `class_names` are those shown to people.
    `notes` are remarks worth a line on the screen. `hidden` are the system's own files, which are passed over; `empty_classes` are
    class folders with nothing in them.
    """

    spec: str
    description: str
    class_keys: tuple[str, ...]
    class_names: tuple[str, ...]
    records: list[Record] = field(default_factory=list)
    arrays: list[ArrayPart] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    empty_classes: list[str] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        return len(self.records) + sum(len(part.labels) for part in self.arrays)

    @property
    def split_names(self) -> list[str]:
        """The splits that the source itself names."""
        named = {part.split for part in (*self.records, *self.arrays)}
        return [split for split in SPLITS if split in named]


def split_word(name: str) -> str | None:
    """Return "train", "val" or "test" for the usual spellings of a split, else None."""
    return _SPLIT_WORDS.get(name.strip().lower())


def is_hidden(name: str) -> bool:
    """Tell whether `name` is a file of the system's own (.DS_Store, ._photo.jpg, Thumbs.db, __MACOSX)."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def printable(name: str) -> str:
    """Return `name` for people: control characters, and bytes that are no UTF-8, become \\x1b, \\udce3."""
    if name.isprintable():
        return name
    return "".join(
        letter if letter.isprintable() or unicodedata.category(letter) == "Zs" else letter.encode("unicode_escape").decode()
        for letter in name
    )


def has_image_suffix(name: str) -> bool:
    """Tell whether `name` ends like an image file."""
    dot = name.rfind(".")
    return dot >= 0 and name[dot:].lower() in IMAGE_SUFFIXES


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names in order: as numbers when all of them are (so that "10" follows "9"), else as text."""
    distinct = set(names)
    if all(name.isascii() and name.isdigit() for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def display_names(keys: Sequence[str], mapping: Mapping[str, str] | None) -> tuple[str, ...]:
    """Return the mapped name of every class where the mapping covers them all without collision, else the keys."""
    if mapping is None or not all(key in mapping for key in keys):
        return tuple(keys)
    names = tuple(mapping[key] for key in keys)
    return names if len(set(names)) == len(names) else tuple(keys)


def parse_class_names(text: str, file_name: str) -> dict[str, str]:
    """Return {class key: name} from a classes.json (object or list) or classes.txt (one name a line). Raises DataError.

    A list names the classes "0", "1", ….
    """
    if not file_name.lower().endswith(".json"):
        return {str(index): line.strip() for index, line in enumerate(text.splitlines()) if line.strip()}
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(
            f"{file_name} is not valid JSON.", got=error, remedy="mend it or remove it: it only gives the classes' names"
        ) from None
    if isinstance(content, list):
        return {str(index): str(name) for index, name in enumerate(content)}
    if isinstance(content, dict):
        return {str(key): str(name) for key, name in content.items()}
    raise DataError(f"{file_name} does not name classes.", got=type(content).__name__, allowed="an object {class: name} or a list of names")


def class_names_beside(folder: Path) -> dict[str, str] | None:
    """Return what classes.json or classes.txt in `folder` says (above it, if the folder is one split), None when there is neither."""
    folders = [folder, folder.absolute().parent] if split_word(folder.absolute().name) else [folder]
    for path in (place / file_name for place in folders for file_name in ("classes.json", "classes.txt")):
        if path.is_file():
            return parse_class_names(path.read_text(encoding="utf-8-sig"), str(path))
    return None
