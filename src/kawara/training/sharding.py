"""A model that is too large for one device: weights, gradients and moments divided among the processes, each holding 1/N of every tensor.

FSDP2 (torch.distributed.fsdp.fully_shard; Zhao et al., arXiv 2304.11277; stage 3 of ZeRO, Rajbhandari et al., arXiv 1910.02054): the
weights of a block are put together just before it computes, and let go afterwards. Numbers are those of training without.

The checkpoint to resume from is a folder of torch.distributed.checkpoint in safetensors, in which each process writes what it holds; the
number of processes may differ when it is read. `last.json` beside it names the folder and says where the run stands: what it does
not name does not count.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from kawara.data.loading import Batch
from kawara.errors import ModelFileError
from kawara.files import write_text
from kawara.training.averaging import WeightAverage
from kawara.training.checkpoint import save_weights, tensors_of
from kawara.training.distributed import LossFunction, SharedLoss, World


class ShardedWorld(World):
    """Processes that train together, none of which holds the whole model."""

    is_sharded = True

    def share_model(self, model: nn.Module, batch_size: int) -> None:
        """Divide the model, block by block."""
        super().share_model(model, batch_size)
        for block in list(_blocks(model)):
            fully_shard(block, reshard_after_forward=True)
        fully_shard(model, reshard_after_forward=True)

    def loss_of(self, task: Any, model: nn.Module, accumulate: int) -> LossFunction:
        """Return the function (batch, micro-step) → (loss, number right); gradients are averaged and divided as they arise."""
        shared = SharedLoss(task, model, self.size)

        def loss(batch: Batch, step: int) -> tuple[Tensor, Tensor]:
            model.set_requires_gradient_sync((step + 1) % accumulate == 0)  # type: ignore[operator]
            return shared(batch, step)

        return loss

    def whole_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Return all weights on the CPU in the first process, nothing in the others."""
        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))  # type: ignore[return-value]

    def load_state(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Take up weights that are whole, or divided as the model is."""
        if any(isinstance(tensor, DTensor) for tensor in state.values()):
            model.load_state_dict(state)
        else:
            set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))  # type: ignore[arg-type]

    def has_checkpoint(self, path: Path) -> bool:
        """Whether there is something to resume from."""
        return _pointer(path).exists()

    def save_weights(self, path: Path, model: nn.Module, progress: dict[str, Any]) -> None:
        """Write all weights to one file."""
        state = self.whole_state(model)
        if self.is_first:
            save_weights(path, state, progress)

    def save(
        self, path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], average: WeightAverage | None, progress: dict[str, Any]
    ) -> None:
        """Write the state of training: every process its part."""
        if average is not None:
            progress = progress | {"average_updates": average.num_updates}
        folder = path.with_name(f"step-{progress['step']:08d}")
        if self.is_first and folder.exists():
            shutil.rmtree(folder)
        self.wait()
        dcp.save(tensors_of(model, optimizers, average), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
        self.wait()
        if self.is_first:
            write_text(_pointer(path), json.dumps({"folder": folder.name, "progress": progress}))
            for old in path.parent.glob("step-*"):
                if old != folder:
                    shutil.rmtree(old)

    def load(self, path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], average: WeightAverage | None) -> dict[str, Any]:
        """Restore what `save` wrote, whoever wrote it. Raises ModelFileError if it is damaged."""
        try:
            pointer = json.loads(_pointer(path).read_text(encoding="utf-8"))
            reader = HuggingFaceStorageReader(str(path.with_name(Path(pointer["folder"]).name)))
            known = reader.read_metadata().state_dict_metadata
            _make_moments(model, optimizers, {name: tuple(getattr(entry, "size", ())) for name, entry in known.items()})
            dcp.load(tensors_of(model, optimizers, average), storage_reader=reader)
            progress = pointer["progress"]
            if average is not None:
                average.num_updates = progress["average_updates"]
        except FileNotFoundError:
            raise ModelFileError(f"There is no checkpoint at {_pointer(path)}.", remedy="start again without --resume") from None
        except (OSError, KeyError, ValueError, TypeError, dcp.CheckpointException) as error:
            raise ModelFileError(f"The checkpoint of {_pointer(path)} is damaged or belongs to another model.", got=error) from None
        return progress


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that stand in lists below `module`, without looking into them."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from _blocks(child)
        elif isinstance(module, nn.ModuleList | nn.Sequential) and any(True for _ in child.parameters()):
            yield child


def _make_moments(model: nn.Module, optimizers: list[torch.optim.Optimizer], shapes: dict[str, tuple[int, ...]]) -> None:
    """Make the moments that a checkpoint holds, for it to be read into."""
    parameters = dict(model.named_parameters())
    for name, shape in shapes.items():
        kind, *rest = name.split(".")
        if kind != "optimizer":
            continue
        number, parameter_name, key = int(rest[0]), ".".join(rest[1:-1]), rest[-1]
        parameter = parameters[parameter_name]
        is_like_it = tuple(parameter.shape) == shape and key != "step"
        moment = torch.zeros_like(parameter) if is_like_it else torch.zeros(shape, device=parameter.device)
        optimizers[number].state[parameter][key] = moment


def _pointer(path: Path) -> Path:
    return path.with_suffix(".json")
