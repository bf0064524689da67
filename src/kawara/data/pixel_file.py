"""The file in which decoded images are kept.

    pixels of all images, (H, W, C) uint8, one after the other | index (npz of PixelIndex) | lengths and signature

It is written under a name of its own and renamed when complete, so that neither a crash nor a second builder leaves half of one;
the next builder clears away what a killed one left. Files that were not used for longest go first when the folder grows beyond its bound.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from kawara.data.decode import ImageU8
from kawara.files import HAS_LOCKS, PARTIAL, lock

SUFFIX = ".kawara-pixels"
MAX_CACHE_BYTES = 20_000_000_000
_SIGNATURE = b"kawarapx"
_TRAILER_BYTES = 24
_LOCKED_AFTER_S = 60
_ABANDONED_AFTER_S = 24 * 3600


class Failure(NamedTuple):
    """Why a file cannot be used: in one word, and in a sentence."""

    kind: str
    reason: str


@dataclass
class PixelIndex:
    """What the pass found, one row a record. `sizes` is (0, 0) where the file failed.

    `traits` (n,), `original_sizes` (n, 2) and `signatures` (n, 288) are what `traits` and `duplicates` say of the file and its pixels.
    """

    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    digests: npt.NDArray[np.uint8]
    traits: npt.NDArray[np.uint16]
    original_sizes: npt.NDArray[np.int32]
    signatures: npt.NDArray[np.uint8]
    failures: dict[int, Failure]
    unreadable: list[int]
    has_pixels: bool = False


class NewPixelFile:
    """A cache file being written. `problem` says why it takes no pixels (any more)."""

    def __init__(self, path: Path, bound: int, problem: str | None = None):
        self.path, self.bound, self.problem = path, bound, problem
        self.num_bytes = 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid4().hex[:8]}{PARTIAL}")
        self._file: BinaryIO | None = None
        if problem is None:
            self._attempt(self._open)

    def _open(self) -> None:
        self._file = self._temporary.open("xb", buffering=1 << 20)
        lock(self._file.fileno())  # until it is closed or its process is dead: see _remove_abandoned

    def append(self, image_u8: ImageU8) -> int:
        """Write the pixels unless something is in the way; return where they start."""
        start = self.num_bytes
        self.num_bytes += image_u8.size
        if self.problem is None and self.num_bytes > self.bound:
            self.problem = f"their pixels are beyond the bound of the cache ({self.bound / 1e6:,.0f} MB)"
        file = self._file
        if self.problem is None and file is not None:
            self._attempt(lambda: file.write(image_u8.data))
        return start

    def finish(self, index: PixelIndex) -> bool:
        """Write the index behind the pixels and give the file its name. Return whether there is a file now.

        Without the pixels the index is still worth keeping: the next start knows the digests and the files that failed.
        """
        file = self._file
        if file is None:
            return False
        index.has_pixels = self.problem is None

        def write() -> None:
            if not index.has_pixels:
                file.seek(0)
                file.truncate()
            payload = _pack(index)
            file.write(payload)
            num_bytes = self.num_bytes if index.has_pixels else 0
            file.write(num_bytes.to_bytes(8, "little") + len(payload).to_bytes(8, "little") + _SIGNATURE)
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(self._temporary, self.path)

        return self._attempt(write)

    def discard(self) -> None:
        """Leave nothing of an unfinished file; a finished one has its own name by now."""
        with contextlib.suppress(OSError):  # closing writes what is buffered, for which there may be no space
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _attempt(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self.problem = f"{'no space is left in' if is_full else 'cannot write to'} {self.path.parent} ({error.strerror})"
            return False
        return True


def create(path: Path, max_cache_bytes: int | None) -> NewPixelFile:
    """Begin the file `path`. A folder that cannot be written is its `problem`, no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
    except OSError as error:
        return NewPixelFile(path, 0, f"cannot write to {path.parent} ({error.strerror})")
    return NewPixelFile(path, bound_of(path.parent, max_cache_bytes))


def bound_of(folder: Path, max_cache_bytes: int | None) -> int:
    """Return `max_cache_bytes`, else a third of the space that is free at `folder`, at most 20 GB."""
    return min(MAX_CACHE_BYTES, shutil.disk_usage(folder).free // 3) if max_cache_bytes is None else max_cache_bytes


def read_index(path: Path) -> PixelIndex | None:
    """Return the index of a cache file, None where there is none that can be used."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TRAILER_BYTES))
            trailer = file.read()
            num_bytes, index_bytes = int.from_bytes(trailer[:8], "little"), int.from_bytes(trailer[8:16], "little")
            if trailer[16:] != _SIGNATURE or num_bytes + index_bytes + _TRAILER_BYTES != size:
                return None
            file.seek(num_bytes)
            with np.load(io.BytesIO(file.read(index_bytes)), allow_pickle=False) as stored:
                found = json.loads(stored["failures"].tobytes())
                return PixelIndex(
                    stored["offsets"],
                    stored["sizes"],
                    stored["digests"],
                    stored["traits"],
                    stored["original_sizes"],
                    stored["signatures"],
                    {int(key): Failure(*failure) for key, failure in found["failures"].items()},
                    found["unreadable"],
                    bool(stored["has_pixels"]),
                )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def _pack(index: PixelIndex) -> bytes:
    failures = json.dumps({"failures": {str(key): failure for key, failure in index.failures.items()}, "unreadable": index.unreadable})
    content = io.BytesIO()
    np.savez(
        content,
        offsets=index.offsets,
        sizes=index.sizes,
        digests=index.digests,
        traits=index.traits,
        original_sizes=index.original_sizes,
        signatures=index.signatures,
        failures=np.frombuffer(failures.encode(), np.uint8),
        has_pixels=np.array(index.has_pixels),
    )
    return content.getvalue()


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed builders left: nobody holds a lock on it. What is new is spared: its builder may not have locked it yet."""
    for path in folder.glob(f".*{SUFFIX}.*{PARTIAL}"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            age_s = time.time() - os.fstat(file.fileno()).st_mtime
            if age_s > _ABANDONED_AFTER_S or (HAS_LOCKS and age_s > _LOCKED_AFTER_S and lock(file.fileno())):
                path.unlink()


def evict(folder: Path, *, keep: Path, bound: int) -> None:
    """Remove the cache files unused for longest until the folder is within `bound`."""
    files = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            status = path.stat()
            files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= bound:
            return
        if path != keep:
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
