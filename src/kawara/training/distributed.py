"""Several processes that train one model: the same result as one process, up to the order in which numbers are added.

Every process holds the whole model and works on its share of every batch (`data/sharing.py`); gradients are averaged
(torch.nn.parallel.DistributedDataParallel, Li et al., arXiv 2006.15704). Whatever a clock or a person decides, the first process decides
for all, and it alone writes. A process is told its number by the variables that torchrun sets: RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

With n_r of the n images of a batch in process r of N, and the mean loss ℓ_r over them, each minimises ℓ_r · n_r N / n: the average of the
gradients is then that of the mean over the batch, also where shares are not equal.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kawara.data.loading import Batch, EvalLoader
from kawara.data.sharing import Share
from kawara.errors import ConfigError, ProcessLostError
from kawara.layers.shared_batch import share_batch
from kawara.runtime import autocast_dtype, choose_device
from kawara.tasks.classification import classify
from kawara.training.averaging import WeightAverage
from kawara.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from kawara.training.run_config import RunConfig

PATIENCE = datetime.timedelta(days=2)
"""How long processes wait for the first one to decode a data set."""

LossFunction = Callable[[Batch, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class World:
    """The processes that train together, this one being number `rank` of `size`. Every method is called by all, or by none."""

    rank: int = 0
    size: int = 1
    store: dist.Store | None = None
    is_sharded: ClassVar[bool] = False

    @property
    def is_first(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """The rows of every batch that this process works on."""
        return Share(self.rank, self.size)

    def share_model(self, model: nn.Module, batch_size: int) -> None:
        """Make the layers of `model` that look at the whole batch share it. Raises ConfigError for a batch that is too small to be cut."""
        if self.size == 1:
            return
        if batch_size < 2 * self.size - 1:
            raise ConfigError(
                f"A batch of {batch_size} images cannot be cut for {self.size} processes.",
                allowed=f"--set batch_size={2 * self.size} or more: images are mixed in pairs, and every process gets a pair",
            )
        share_batch(model, [torch.from_numpy(Share(rank, self.size).rows(batch_size)) for rank in range(self.size)], self.rank)

    def tell(self, name: str, text: str | None) -> str:
        """Return the text that the first process gives; the others wait until it has it."""
        if self.store is None:
            assert text is not None
            return text
        if self.is_first:
            assert text is not None
            self.store.set(name, text)
        self.store.wait([name], PATIENCE)
        return self.store.get(name).decode()

    def agree(self, *values: float, stop: bool) -> tuple[list[float], bool]:
        """Return the first process's values, and whether any process wants to stop."""
        if self.size == 1:
            return list(values), stop
        message = torch.tensor([*values, 0.0], dtype=torch.float64) * self.is_first
        message[-1] = stop
        dist.all_reduce(message)
        return message[:-1].tolist(), bool(message[-1] > 0)

    def total(self, loss: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and number right of the whole batch, given what `loss_of` said here."""
        if self.size == 1:
            return loss, right
        both = torch.stack((loss.float() / self.size, right.float()))
        dist.all_reduce(both)
        return both[0], both[1].long()

    def classify(self, model: nn.Module, loader: Any, dtype: torch.dtype | None) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (n, K) and labels (n,) of all images; every process answers for its share of them."""
        if self.size == 1:
            return classify(model, loader, dtype)
        assert isinstance(loader, EvalLoader)
        probabilities, _ = classify(model, loader, dtype)
        whole = torch.zeros((len(loader.split), 1 + probabilities.shape[1]), device=loader.device)
        answered = np.insert(probabilities, 0, 1.0, axis=1)
        whole[torch.from_numpy(loader.served).to(loader.device)] = torch.from_numpy(answered).to(loader.device)
        dist.all_reduce(whole)
        return (whole[:, 1:] / whole[:, :1]).cpu().numpy(), loader.split.labels  # where two answered for an image, both said the same

    def whole_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the weights of `model`."""
        return model.state_dict()

    def load_state(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Take up weights."""
        model.load_state_dict(state)

    def has_checkpoint(self, path: Path) -> bool:
        """Whether there is something to resume from at `path`."""
        return path.exists()

    def save_weights(self, path: Path, model: nn.Module, progress: dict[str, Any]) -> None:
        """Write the weights alone."""
        if self.is_first:
            save_weights(path, model.state_dict(), progress)

    def save(
        self, path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], average: WeightAverage | None, progress: dict[str, Any]
    ) -> None:
        """Write the state of training. What is written does not depend on the number of processes."""
        if self.is_first:
            save_checkpoint(path, model, optimizers, average, progress)

    def load(self, path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], average: WeightAverage | None) -> dict[str, Any]:
        """Restore what `save` wrote and return its progress. Raises ModelFileError if it is damaged."""
        return load_checkpoint(path, model, optimizers, average)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))

    def loss_of(self, task: Any, model: nn.Module, accumulate: int) -> LossFunction:
        """Return the function (batch, micro-step) → (loss, number right) whose gradients are those of the whole batch."""
        if self.size == 1:
            return lambda batch, step: task.loss(model, batch, step)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # the name that follows is not in every torch yet
            parallel = DistributedDataParallel(SharedLoss(task, model, self.size), broadcast_buffers=False)

        def loss(batch: Batch, step: int) -> tuple[Tensor, Tensor]:
            parallel.require_backward_grad_sync = (step + 1) % accumulate == 0
            return parallel(batch, step)

        return loss


class SharedLoss(nn.Module):
    """The loss as a module around the model, so that gradients are averaged whatever method of it a task calls."""

    def __init__(self, task: Any, model: nn.Module, size: int):
        super().__init__()
        self.task, self.model, self.size = task, model, size

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        loss, right = self.task.loss(self.model, batch, step)
        return loss * (self.size * len(batch.labels) / len(batch.whole)), right


ALONE = World()


def is_one_of_many() -> bool:
    """Tell whether a launcher started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def sharded(world: World, config: RunConfig, device: torch.device) -> World:
    """Return the world that `config` asks for: `world`, or one that divides the model. Raises ConfigError for what that cannot do."""
    if not config.shard:
        return world
    if world.size == 1:
        raise ConfigError("shard=true divides the model among processes, and there is only this one.", remedy="--devices 2")
    if config.optimizer.name == "muon":
        raise ConfigError("Muon needs whole matrices, and shard=true cuts them.", remedy="--set optimizer.name=adamw")
    if config.distillation.teacher:
        raise ConfigError("shard=true and a teacher do not go together.", remedy="--set shard=false")
    if autocast_dtype(config.precision, device) == torch.float16:
        raise ConfigError("shard=true has no loss scaling for float16.", remedy="--set precision=float32")
    from kawara.training.sharding import ShardedWorld  # slow to import

    return ShardedWorld(world.rank, world.size, world.store)


@contextlib.contextmanager
def joined(device: str | None = None) -> Iterator[World]:
    """Yield the world that a launcher put this process into: `torchrun`, or `kawara train --devices`; ALONE without one.

    On CUDA, process k of a machine takes GPU k.
    """
    if not is_one_of_many():
        yield ALONE
        return
    _end_with_parent()
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # of convolutions with one channel; costs nothing that matters
    backend = "gloo"
    if choose_device(device).type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise ConfigError("There are more processes than GPUs.", got=f"process {local + 1}, {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, rank, size = next(iter(dist.rendezvous("env://")))
        dist.init_process_group(backend, store=dist.PrefixStore("training", store), rank=rank, world_size=size)
        yield World(rank, size, dist.PrefixStore("settled", store))
    except RuntimeError as error:
        if not _names_connection(error):
            raise
        raise ProcessLostError(str(error).split(". ")[0]) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _names_connection(error: RuntimeError) -> bool:
    """Tell whether this is how torch says that another process has gone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "connection"))


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, however that ends (Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)
