"""Decode every image file once and keep the pixels: small ones in memory, others in a memory-mapped file.

One pass over the files reads each once and gives its digest, its pixels (shrunk to what the model can use), what is unusual about it, a
signature by which copies are found, and, for files that cannot be used, the reason. The result is one file in the cache folder (see
`pixel_file`). Its name is a digest of what went in (every file's name, size and times or checksum; the colour and geometry kept; the
decoder's version): when a file changes, the name does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from kawara.data.decode import DECODER_VERSION, ImageU8, decode
from kawara.data.duplicates import SIGNATURE_BYTES, is_blank, sign
from kawara.data.listing import Record
from kawara.data.pixel_file import SUFFIX, Failure, NewPixelFile, PixelIndex, bound_of, create, evict, read_index
from kawara.data.pools import worker_pool
from kawara.data.preprocessing import Preprocessing
from kawara.data.stores import DecodingStore, ImageStore, MappedStore, TensorStore
from kawara.data.traits import NO_TRAITS, Trait, examine
from kawara.errors import DecodeError

ProgressCallback = Callable[[int, int, str], None]

FORMAT_VERSION = 2
SMALL_SIDE_PX = 64
MAX_BYTES_IN_MEMORY = 2_000_000_000
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class DecodedFiles:
    """The images of a list of files after the pass. `failures` gives the reason for each position that has no image.

    `traits`, `original_sizes` and `signatures` are those of the index.
    """

    records: Sequence[Record]
    digests: npt.NDArray[np.uint8]
    failures: dict[int, Failure]
    storage: str
    _index: PixelIndex
    _path: Path | None
    _preprocessing: Preprocessing
    _content: list[npt.NDArray[np.uint8]] = field(default_factory=list)

    @property
    def traits(self) -> npt.NDArray[np.uint16]:
        return self._index.traits

    @property
    def original_sizes(self) -> npt.NDArray[np.int32]:
        return self._index.original_sizes

    @property
    def signatures(self) -> npt.NDArray[np.uint8]:
        return self._index.signatures

    def store(self, positions: npt.NDArray[np.int64]) -> ImageStore:
        """Return the store of the images at `positions`."""
        if self._path is not None and self._index.has_pixels and len(positions):
            with contextlib.suppress(FileNotFoundError):  # another process made room in the cache folder a moment ago
                return self._kept(self._path, self._index.offsets[positions], self._index.sizes[positions])
        records = [self.records[position] for position in positions.tolist()]
        return DecodingStore(records, _Decoder(self._preprocessing), self._index.sizes[positions])

    def _kept(self, path: Path, offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int32]) -> ImageStore:
        channels = self._preprocessing.channels
        if not _fits_in_memory(self._index, channels):
            return MappedStore(np.memmap(path, np.uint8, mode="r"), offsets, sizes, channels)
        height, width = sizes[0].tolist()
        count = height * width * channels
        if not self._content:  # once for all splits; mapped pages would be fetched one by one
            self._content.append(np.fromfile(path, np.uint8, count=int(np.count_nonzero(self._index.sizes[:, 0])) * count))
        rows = torch.from_numpy(self._content[0].reshape(-1, height, width, channels))[torch.from_numpy(offsets // count)]
        return TensorStore(rows.permute(0, 3, 1, 2).contiguous())


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
    keep_pixels: bool = True,
) -> DecodedFiles:
    """Return the decoded images of `records`, from the cache where it holds them.

    `max_cache_bytes` bounds the pixels kept and the whole cache folder (default: a third of the free space, at most 20 GB). Beyond it,
    and where the folder cannot be written, images are decoded each time they are needed; `storage` says so. With `keep_pixels=False`
    only what is known of the files is kept.
    """
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    path = folder / (_name(records, preprocessing, keep_pixels) + SUFFIX)
    index = read_index(path)
    if index is not None and _is_still_right(
        index, records, preprocessing.channels, bound_of(folder, max_cache_bytes) if keep_pixels else -1
    ):
        with contextlib.suppress(OSError):
            os.utime(path)  # the least recently used goes first
        return _decoded(records, index, path, preprocessing)
    file = create(path, max_cache_bytes)
    if not keep_pixels:
        file.problem = file.problem or "only their signatures are kept"
    try:
        index = _build(records, preprocessing, file, workers, progress)
        is_kept = file.finish(index)
    finally:
        file.discard()
    if is_kept:
        evict(folder, keep=path, bound=file.bound)
    return _decoded(records, index, path if is_kept else None, preprocessing, file.problem)


def _is_still_right(index: PixelIndex, records: Sequence[Record], channels: int, bound: int) -> bool:
    """Tell whether another pass would find no more: no file can be read by now, and no pixels left out would fit by now."""
    if not index.has_pixels and _num_bytes(index, channels) <= bound:
        return False
    return not any(_is_readable(records[position]) for position in index.unreadable)


def _num_bytes(index: PixelIndex, channels: int) -> int:
    return int(index.sizes.astype(np.int64).prod(axis=1).sum()) * channels


def _decoded(
    records: Sequence[Record], index: PixelIndex, path: Path | None, preprocessing: Preprocessing, problem: str | None = None
) -> DecodedFiles:
    size = f"{_num_bytes(index, preprocessing.channels) / 1e6:,.0f} MB"
    if path is None or not index.has_pixels:
        storage = f"images are decoded each time they are needed: {problem or f'their pixels ({size}) are beyond the bound of the cache'}"
    elif _fits_in_memory(index, preprocessing.channels):
        storage = f"all images in memory ({size}), kept decoded in {path}"
    else:
        storage = f"decoded images in {path} ({size})"
    return DecodedFiles(records, index.digests, index.failures, storage, index, path, preprocessing)


def _fits_in_memory(index: PixelIndex, channels: int) -> bool:
    sizes = index.sizes[index.sizes[:, 0] > 0]
    if len(sizes) == 0 or sizes.max() > SMALL_SIDE_PX or not (sizes == sizes[0]).all():
        return False
    return _num_bytes(index, channels) <= MAX_BYTES_IN_MEMORY


def _name(records: Sequence[Record], preprocessing: Preprocessing, keep_pixels: bool) -> str:
    kept = (preprocessing.color, preprocessing.resize, preprocessing.image_size, preprocessing.crop_fraction, preprocessing.interpolation)
    digest = hashlib.sha256(repr((FORMAT_VERSION, DECODER_VERSION, kept, keep_pixels)).encode())
    digest.update("\n".join(f"{record.key}\0{record.stamp}" for record in records).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _build(
    records: Sequence[Record], preprocessing: Preprocessing, file: NewPixelFile, workers: int, progress: ProgressCallback | None
) -> PixelIndex:
    """Make the pass: append the pixels to `file`, return what is known of every record."""
    count = len(records)
    index = PixelIndex(
        offsets=np.zeros(count, np.int64),
        sizes=np.zeros((count, 2), np.int32),
        digests=np.zeros((count, 32), np.uint8),
        traits=np.zeros(count, np.uint16),
        original_sizes=np.zeros((count, 2), np.int32),
        signatures=np.zeros((count, SIGNATURE_BYTES), np.uint8),
        failures={},
        unreadable=[],
    )
    position = 0
    for chunk in _decoded_chunks(records, _Decoder(preprocessing), workers):
        for found in chunk:
            index.digests[position] = np.frombuffer(found.digest, np.uint8)
            if isinstance(found, _Seen):
                index.sizes[position] = found.image_u8.shape[:2]
                index.offsets[position] = file.append(found.image_u8)
                index.traits[position], index.original_sizes[position] = found.traits, found.original_size
                index.signatures[position] = found.signature
            else:
                index.failures[position] = found.failure
                if found.failure.kind == UNREADABLE:
                    index.unreadable.append(position)
            position += 1
        if progress is not None:
            progress(position, count, "decoding images")
    return index


@dataclass
class _Seen:
    """What the pass found in a file that can be used."""

    digest: bytes
    image_u8: ImageU8
    traits: Trait
    original_size: tuple[int, int]
    signature: ImageU8 = field(default_factory=lambda: np.zeros(SIGNATURE_BYTES, np.uint8))


@dataclass(frozen=True)
class _Refused:
    digest: bytes
    failure: Failure


_Result = _Seen | _Refused


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
            image_u8 = decoder(record, data)
            results.append(_Seen(digest, image_u8, *examine(data, record.key)))
        except DecodeError as error:
            results.append(_Refused(digest, Failure(error.kind, error.reason)))
        except OSError as error:
            results.append(_Refused(digest, Failure(UNREADABLE, f"cannot be read ({error.strerror or error})")))
    seen = [found for found in results if isinstance(found, _Seen)]
    for found, signature in zip(seen, sign([found.image_u8 for found in seen])):
        found.signature = signature
        found.traits |= Trait.BLANK if is_blank(found.image_u8, signature) else NO_TRAITS
    return results


def _is_readable(record: Record) -> bool:
    try:
        record.read()
    except (OSError, DecodeError):
        return False
    return True
