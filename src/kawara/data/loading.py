"""Batches for training and evaluation, made by threads ahead of their use.

A batch is cut into chunks of a fixed number of images; each chunk is one task for the pool: read, crop and, on a CPU, augment and
normalise. On another device the uint8 pixels travel and the rest happens there. Since chunks do not depend on the number of workers,
and every random number depends on (seed, epoch, draw) alone, neither do the batches; and batch k of an epoch is the same whether the
epoch began at 0 or at k.

Stores that are one tensor in memory need no work for each image: a chunk is one indexing and a few whole-batch operations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kawara.data.augment import Augmentation
from kawara.data.pools import num_cores, worker_pool
from kawara.data.preprocessing import Preprocessing
from kawara.data.sampling import SamplerConfig, epoch_order, epoch_size
from kawara.data.sharing import WHOLE, Share
from kawara.data.sources import ImageSplit
from kawara.errors import ConfigError, InternalError, KawaraError

Indices = npt.NDArray[np.int64]

CHUNK_OF_FILES = 32
CHUNK_OF_TENSOR = 512
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """`images` (B, C, h, w) float32 normalised and `labels` (B,) int64 on the device; `indices` (B,) int64 into the split, on the CPU.

    Where several processes share a batch, these are the rows of one of them, and `shared` holds the indices of all.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    shared: Tensor | None = None

    @property
    def whole(self) -> Tensor:
        """The indices of the whole batch, those of other processes included."""
        return self.indices if self.shared is None else self.shared


class TrainLoader:
    """Serve the augmented batches of an epoch.

    With `drop_last` the incomplete last batch of an epoch is left out; a split smaller than one batch is one batch of all. `share` says
    which rows of every batch are served.
    """

    def __init__(
        self,
        split: ImageSplit,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
        sampler: SamplerConfig | None = None,
        workers: int | None = None,
        device: torch.device | str = "cpu",
        drop_last: bool = True,
        share: Share = WHOLE,
    ):
        self.split, self.augmentation, self.seed = split, augmentation, seed
        self.sampler = sampler or SamplerConfig()
        self.batch_size = _checked(split, batch_size)
        self.workers = workers or num_cores()
        self.device = torch.device(device)
        self.drop_last, self.share = drop_last, share

    @property
    def whole_batch(self) -> int:
        """The number of images of a whole batch, the shares of other processes included."""
        return min(self.batch_size, epoch_size(len(self.split), self.sampler))

    @property
    def num_batches(self) -> int:
        size = epoch_size(len(self.split), self.sampler)
        return max(1, size // self.batch_size) if self.drop_last else -(-size // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from number `start` on. Threads end when the iterator does, or is closed."""
        order, draws = epoch_order(len(self.split), self.split.labels, epoch, self.seed, self.sampler)
        on_cpu = self.device.type == "cpu"

        def make(positions: Indices) -> Tensor:
            indices, chunk_draws = order[positions], draws[positions]
            images_u8 = self._place(indices, chunk_draws, epoch)
            return self.augmentation.transform(images_u8, epoch, chunk_draws, overwrite=True) if on_cpu else images_u8

        def finish(images: Tensor, positions: Indices) -> Tensor:
            if on_cpu:
                return images
            return self.augmentation.transform(_to_device(images, self.device), epoch, draws[positions], overwrite=True)

        steps = [np.arange(i * self.batch_size, min((i + 1) * self.batch_size, len(order))) for i in range(start, self.num_batches)]
        return _batches(self.split, steps, order, make, finish, self.workers, self.device, self.share)

    def _place(self, indices: Indices, draws: Indices, epoch: int) -> Tensor:
        """Return the crops, uint8 (n, C, h, w)."""
        tensor = self.split.store.tensor
        if tensor is not None:
            return self.augmentation.place_batch(_rows(tensor, indices), epoch, draws)
        preprocessing = self.augmentation.preprocessing
        crops = torch.empty((len(indices), preprocessing.channels, *preprocessing.image_size), dtype=torch.uint8)
        for crop, index, draw in zip(crops, indices.tolist(), draws.tolist()):
            _guarded(self.split, index, lambda image, crop=crop, draw=draw: self.augmentation.place(image, epoch, draw, out=crop))
        return crops


class EvalLoader:
    """Serve the whole split in order, without augmentation, the incomplete last batch included; of every batch the rows of `share`."""

    def __init__(
        self,
        split: ImageSplit,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        workers: int | None = None,
        device: torch.device | str = "cpu",
        share: Share = WHOLE,
    ):
        self.split, self.preprocessing = split, preprocessing
        self.batch_size = _checked(split, batch_size)
        self.workers = workers or num_cores()
        self.device, self.share = torch.device(device), share

    @property
    def num_batches(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __len__(self) -> int:
        return self.num_batches

    @property
    def served(self) -> Indices:
        """The positions in the split of the images that are served, in their order."""
        return np.concatenate(_cut(self._steps(), self.share))

    def __iter__(self) -> Iterator[Batch]:
        on_cpu = self.device.type == "cpu"
        normalise = self.preprocessing.normalise

        def make(indices: Indices) -> Tensor:
            images_u8 = self._place(indices)
            return normalise(images_u8) if on_cpu else images_u8

        def finish(images: Tensor, positions: Indices) -> Tensor:
            return images if on_cpu else normalise(_to_device(images, self.device))

        order = np.arange(len(self.split), dtype=np.int64)
        return _batches(self.split, self._steps(), order, make, finish, self.workers, self.device, self.share)

    def _steps(self) -> list[Indices]:
        return np.split(np.arange(len(self.split), dtype=np.int64), range(self.batch_size, len(self.split), self.batch_size))

    def _place(self, indices: Indices) -> Tensor:
        tensor = self.split.store.tensor
        if tensor is not None:
            in_a_row = int(indices[-1]) - int(indices[0]) + 1 == len(indices)  # then a view of them is enough
            rows = tensor[int(indices[0]) : int(indices[-1]) + 1] if in_a_row else _rows(tensor, indices)
            return self.preprocessing.place_batch(rows)
        return torch.stack([_guarded(self.split, i, self.preprocessing.place) for i in indices.tolist()])


def _rows(images: Tensor, indices: Indices) -> Tensor:
    # Copies whole images, where images[indices] goes byte by byte: 512 of 32 px take 44 µs for 910.
    return images.index_select(0, torch.from_numpy(indices))


def _batches(
    split: ImageSplit,
    steps: list[Indices],
    order: Indices,
    make: Callable[[Indices], Tensor],
    finish: Callable[[Tensor, Indices], Tensor],
    workers: int,
    device: torch.device,
    share: Share,
) -> Iterator[Batch]:
    """Yield the share of each of `steps` (positions in `order`) as a batch: chunks by `make` on the pool, the whole by `finish` here."""
    wholes, steps = steps, _cut(steps, share)
    chunk = CHUNK_OF_FILES if split.store.tensor is None else CHUNK_OF_TENSOR
    waiting: deque[list[Future[Tensor]]] = deque()
    with worker_pool(workers) as pool:

        def submit(step: Indices) -> None:
            waiting.append([pool.submit(make, step[start : start + chunk]) for start in range(0, len(step), chunk)])

        chunks_per_batch = -(-len(steps[0]) // chunk) if steps else 1
        ahead = max(_BATCHES_AHEAD, -(-2 * workers // chunks_per_batch))
        for step in steps[:ahead]:
            submit(step)
        for number, step in enumerate(steps):
            parts = [future.result() for future in waiting.popleft()]
            if number + ahead < len(steps):
                submit(steps[number + ahead])
            images = finish(parts[0] if len(parts) == 1 else torch.cat(parts), step)
            indices = order[step]
            labels = torch.from_numpy(split.labels[indices]).to(device, non_blocking=True)
            yield Batch(images, labels, torch.from_numpy(indices), None if share.size == 1 else torch.from_numpy(order[wholes[number]]))


def _cut(steps: list[Indices], share: Share) -> list[Indices]:
    return steps if share.size == 1 else [step[share.rows(len(step))] for step in steps]


def _guarded(split: ImageSplit, index: int, place: Callable[[npt.NDArray[np.uint8]], Tensor]) -> Tensor:
    """Place one image; whatever goes wrong names it."""
    try:
        return place(split.store[index])
    except KawaraError:
        raise
    except Exception as error:
        raise InternalError(f"The image {split.keys[index]} cannot be prepared: {type(error).__name__}: {error}") from error


def _to_device(images_u8: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        images_u8 = images_u8.pin_memory()  # otherwise the copy waits for the kernels that are under way
    return images_u8.to(device, non_blocking=True)


def _checked(split: ImageSplit, batch_size: int) -> int:
    if batch_size < 1:
        raise ConfigError("batch_size must be at least 1.", got=batch_size)
    if len(split) == 0:
        raise ConfigError(f"The split {split.name} is empty.")
    return batch_size
