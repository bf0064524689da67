"""Decode every image file once and keep the pixels: small ones in memory, others in a memory-mapped file.

One pass over the files reads each once and gives its digest, its pixels (shrunk to what the model can use) and, for files that cannot
be used, the reason. The result is one file in the cache folder:

    pixels of all images, (H, W, C) uint8, one after the other | index (npz: offsets, sizes, digests, failures) | lengths and signature

It is written under a name of its own and renamed when complete, so a crash or a second builder leaves nothing half-written. Its name is
a digest of what went in (every file's name, size and times or checksum; the colour and geometry kept; the decoder's version): when a
file changes, the name does. Cache files that were not used for longest go first when the folder grows beyond its bound.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import time
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch

from ..errors import DecodeError
from .decode import DECODER_VERSION, ImageU8, decode
from .listing import Record
from .pools import worker_pool
from .preprocessing import Preprocessing
from .stores import DecodingStore, ImageStore, MappedStore, TensorStore

ProgressCallback = Callable[[int, int, str], None]

FORMAT_VERSION = 1
SUFFIX = ".kawara-pixels"
SMALL_SIDE_PX = 64
MAX_BYTES_IN_MEMORY = 2_000_000_000
MAX_CACHE_BYTES = 20_000_000_000
_SIGNATURE = b"kawarapx"
_TRAILER_BYTES = 24
_ABANDONED_AFTER_S = 24 * 3600


@dataclass
class _Index:
    """What the pass found, one row a record. `sizes` is (0, 0) where the file failed."""

    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    digests: npt.NDArray[np.uint8]
    failures: dict[int, str]
    unreadable: list[int]
    has_pixels: bool = False


@dataclass(frozen=True)
class DecodedFiles:
    """The images of a list of files after the pass. `failures` gives the reason for each position that has no image."""

    records: Sequence[Record]
    digests: npt.NDArray[np.uint8]
    failures: dict[int, str]
    storage: str
    _index: _Index
    _path: Path | None
    _preprocessing: Preprocessing
    _content: list[npt.NDArray[np.uint8]] = field(default_factory=list)

    def store(self, positions: npt.NDArray[np.int64]) -> ImageStore:
        """Return the store of the images at `positions`."""
        offsets, sizes = self._index.offsets[positions], self._index.sizes[positions]
        channels = self._preprocessing.channels
        if self._path is None or not self._index.has_pixels or len(positions) == 0:
            records = [self.records[position] for position in positions.tolist()]
            return DecodingStore(records, _Decoder(self._preprocessing), sizes)
        if _fits_in_memory(self._index, channels):
            height, width = sizes[0].tolist()
            count = height * width * channels
            if not self._content:  # once for all splits; mapped pages would be fetched one by one
                self._content.append(np.fromfile(self._path, np.uint8, count=int(np.count_nonzero(self._index.sizes[:, 0])) * count))
            rows = torch.from_numpy(self._content[0].reshape(-1, height, width, channels))[torch.from_numpy(offsets // count)]
            return TensorStore(rows.permute(0, 3, 1, 2).contiguous())
        return MappedStore(np.memmap(self._path, np.uint8, mode="r"), offsets, sizes, channels)


class _Decoder:
    """Turn the bytes of a record into the pixels that are kept."""

    def __init__(self, preprocessing: Preprocessing):
        self.preprocessing = preprocessing

    def __call__(self, record: Record, data: bytes) -> ImageU8:
        image_u8 = decode(data, record.key, color=self.preprocessing.color, min_side=self.preprocessing.stored_side)
        return self.preprocessing.shrink(image_u8)


def default_cache_dir() -> Path:
    """Return the folder of the environment variable KAWARA_CACHE, or the user's cache folder."""
    if os.environ.get("KAWARA_CACHE"):
        return Path(os.environ["KAWARA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kawara"


def decode_files(
    records: Sequence[Record],
    preprocessing: Preprocessing,
    *,
    cache_dir: Path | None,
    max_cache_bytes: int | None,
    workers: int,
    progress: ProgressCallback | None,
) -> DecodedFiles:
    """Return the decoded images of `records`, from the cache where it holds them.

    `max_cache_bytes` bounds the pixels kept and the whole cache folder (default: a third of the free space, at most 20 GB). Beyond it,
    and where the folder cannot be written, images are decoded each time they are needed; `storage` says so.
    """
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    path = folder / (_name(records, preprocessing) + SUFFIX)
    index = _open(path, records)
    if index is not None:
        with contextlib.suppress(OSError):
            os.utime(path)  # the least recently used goes first
        return _decoded(records, index, path, preprocessing)
    file = _open_new(path, max_cache_bytes)
    try:
        index = _build(records, preprocessing, file, workers, progress)
        is_kept = file.finish(index)
    finally:
        file.discard()
    if is_kept:
        _evict(folder, keep=path, bound=file.bound)
    return _decoded(records, index, path if is_kept else None, preprocessing, file.problem)


class _NewFile:
    """A cache file being written. `problem` says why it takes no pixels (any more)."""

    def __init__(self, path: Path, bound: int, problem: str | None = None):
        self.path, self.bound, self.problem = path, bound, problem
        self.num_bytes = 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid4().hex[:8]}.partial")
        self._file: BinaryIO | None = None
        if problem is None:
            self._attempt(lambda: setattr(self, "_file", self._temporary.open("xb", buffering=1 << 20)))

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

    def finish(self, index: _Index) -> bool:
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


def _open_new(path: Path, max_cache_bytes: int | None) -> _NewFile:
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        bound = min(MAX_CACHE_BYTES, shutil.disk_usage(folder).free // 3) if max_cache_bytes is None else max_cache_bytes
        _remove_abandoned(folder)
    except OSError as error:
        return _NewFile(path, 0, f"cannot write to {folder} ({error.strerror})")
    return _NewFile(path, bound)


def _decoded(
    records: Sequence[Record], index: _Index, path: Path | None, preprocessing: Preprocessing, problem: str | None = None
) -> DecodedFiles:
    num_bytes = int(index.sizes.astype(np.int64).prod(axis=1).sum()) * preprocessing.channels
    size = f"{num_bytes / 1e6:,.0f} MB"
    if path is None or not index.has_pixels:
        storage = f"images are decoded each time they are needed: {problem or f'their pixels ({size}) are beyond the bound of the cache'}"
    elif _fits_in_memory(index, preprocessing.channels):
        storage = f"all images in memory ({size}), kept decoded in {path}"
    else:
        storage = f"decoded images in {path} ({size})"
    return DecodedFiles(records, index.digests, index.failures, storage, index, path, preprocessing)


def _fits_in_memory(index: _Index, channels: int) -> bool:
    sizes = index.sizes[index.sizes[:, 0] > 0]
    if len(sizes) == 0 or sizes.max() > SMALL_SIDE_PX or not (sizes == sizes[0]).all():
        return False
    return len(sizes) * int(sizes[0].prod()) * channels <= MAX_BYTES_IN_MEMORY


def _name(records: Sequence[Record], preprocessing: Preprocessing) -> str:
    kept = (preprocessing.color, preprocessing.resize, preprocessing.image_size, preprocessing.crop_fraction, preprocessing.interpolation)
    digest = hashlib.sha256(repr((FORMAT_VERSION, DECODER_VERSION, kept)).encode())
    digest.update("\n".join(f"{record.key}\0{record.stamp}" for record in records).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _build(
    records: Sequence[Record], preprocessing: Preprocessing, file: _NewFile, workers: int, progress: ProgressCallback | None
) -> _Index:
    """Make the pass: append the pixels to `file`, return what is known of every record."""
    count = len(records)
    index = _Index(np.zeros(count, np.int64), np.zeros((count, 2), np.int32), np.zeros((count, 32), np.uint8), {}, [])
    position = 0
    for chunk in _decoded_chunks(records, _Decoder(preprocessing), workers):
        for digest, image_u8, failure, is_unreadable in chunk:
            index.digests[position] = np.frombuffer(digest, np.uint8)
            if image_u8 is not None:
                index.sizes[position] = image_u8.shape[:2]
                index.offsets[position] = file.append(image_u8)
            else:
                index.failures[position] = failure
                if is_unreadable:
                    index.unreadable.append(position)
            position += 1
        if progress is not None:
            progress(position, count, "decoding images")
    return index


_Result = tuple[bytes, ImageU8 | None, str, bool]


def _decoded_chunks(records: Sequence[Record], decoder: _Decoder, workers: int) -> Iterator[list[_Result]]:
    """Yield the results in the order of the records, a chunk at a time; a bounded number of chunks is under way."""
    size = max(1, min(64, len(records) // (4 * workers)))
    waiting: deque[Future[list[_Result]]] = deque()
    with warnings.catch_warnings(), worker_pool(workers) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # what matters becomes an error; the rest would fill the screen
        for start in range(0, len(records), size):
            waiting.append(pool.submit(_decode_chunk, records[start : start + size], decoder))
            if len(waiting) > 2 * workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _decode_chunk(records: Sequence[Record], decoder: _Decoder) -> list[_Result]:
    results: list[_Result] = []
    for record in records:
        digest = bytes(32)
        try:
            data = record.read()
            digest = hashlib.sha256(data).digest()
            results.append((digest, decoder(record, data), "", False))
        except DecodeError as error:
            results.append((digest, None, error.reason, False))
        except OSError as error:
            results.append((digest, None, f"cannot be read ({error.strerror or error})", True))
    return results


def _pack(index: _Index) -> bytes:
    failures = json.dumps({"failures": {str(key): reason for key, reason in index.failures.items()}, "unreadable": index.unreadable})
    content = io.BytesIO()
    np.savez(
        content,
        offsets=index.offsets,
        sizes=index.sizes,
        digests=index.digests,
        failures=np.frombuffer(failures.encode(), np.uint8),
        has_pixels=np.array(index.has_pixels),
    )
    return content.getvalue()


def _open(path: Path, records: Sequence[Record]) -> _Index | None:
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
                index = _Index(
                    stored["offsets"],
                    stored["sizes"],
                    stored["digests"],
                    {int(key): reason for key, reason in found["failures"].items()},
                    found["unreadable"],
                    bool(stored["has_pixels"]),
                )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    if len(index.offsets) != len(records) or any(_is_readable(records[position]) for position in index.unreadable):
        return None
    return index


def _is_readable(record: Record) -> bool:
    try:
        record.read()
    except (OSError, DecodeError):
        return False
    return True


def _remove_abandoned(folder: Path) -> None:
    """Remove what a builder left that was killed long ago."""
    for path in folder.glob(f".*{SUFFIX}.*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
                path.unlink()


def _evict(folder: Path, *, keep: Path, bound: int) -> None:
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
