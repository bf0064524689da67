"""Where the pixels of a split are: in one tensor, in a memory-mapped file, or still in the image files.

A store has `len(store)`; `store[i]`, one (H, W, C) uint8 image; `store.uniform`, whether all have one size; and `store.tensor`,
all of them as (N, C, H, W) uint8 where they lie in memory as one tensor, else None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kawara.data.decode import ImageU8, to_grey
from kawara.data.listing import Record
from kawara.errors import DecodeError


class ImageStore(Protocol):
    @property
    def uniform(self) -> bool: ...

    @property
    def tensor(self) -> Tensor | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ImageU8: ...


class TensorStore:
    """Hold all images in memory as one (N, C, H, W) uint8 tensor."""

    uniform = True

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int) -> ImageU8:
        return np.ascontiguousarray(self.tensor[index].permute(1, 2, 0).numpy())


class MappedStore:
    """Read images of any size from a memory-mapped file in which they lie one after the other.

    `pixels` is the flat uint8 map; image i is sizes[i] = (H, W) large and starts at offsets[i].
    """

    tensor = None

    def __init__(self, pixels: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int32], channels: int):
        self.pixels, self.offsets, self.sizes, self.channels = pixels, offsets, sizes, channels
        self.uniform = len(sizes) > 0 and bool((sizes == sizes[0]).all())

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> ImageU8:
        height, width = self.sizes[index].tolist()
        start = int(self.offsets[index])
        # A copy: torch takes no read-only memory, and the page is read here, in the worker, once.
        return np.array(self.pixels[start : start + height * width * self.channels]).reshape(height, width, self.channels)


class DecodingStore:
    """Decode an image each time it is asked for: for data sets beyond the bound of the cache."""

    tensor = None

    def __init__(self, records: Sequence[Record], decode_record: Callable[[Record, bytes], ImageU8], sizes: npt.NDArray[np.int32]):
        self.records, self.decode_record = records, decode_record
        self.uniform = len(sizes) > 0 and bool((sizes == sizes[0]).all())

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ImageU8:
        record = self.records[index]
        try:
            data = record.read()
        except OSError as error:
            raise DecodeError(record.key, f"cannot be read any more ({error.strerror or error})") from None
        return self.decode_record(record, data)


def tensor_from_arrays(images_u8: npt.NDArray[np.uint8], channels: int) -> Tensor:
    """Return (N, H, W, 1|3) as (N, channels, H, W). Grey as three channels is a view: it takes no more memory."""
    if channels == 1 and images_u8.shape[3] == 3:
        images_u8 = np.concatenate([to_grey(images_u8[start : start + 1024]) for start in range(0, len(images_u8), 1024)])
    moved = np.ascontiguousarray(images_u8.transpose(0, 3, 1, 2))
    tensor = torch.from_numpy(moved if moved.flags.writeable else moved.copy())
    return tensor.expand(-1, channels, -1, -1)
