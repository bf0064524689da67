"""The whole state of a training run in one safetensors file: weights, moments, average, counters. No pickle.

Tensors are named `model.<parameter>`, `average.<parameter>` and `optimizer.<number>.<parameter>.<moment>`; everything
that is not a tensor is JSON in the header.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kawara.errors import ModelFileError
from kawara.files import replacing
from kawara.training.averaging import WeightAverage


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: WeightAverage | None,
    progress: dict[str, Any],
) -> None:
    """Write the state of training to `path`, atomically; `progress` is JSON (step, epoch, seconds, best …)."""
    if average is not None:
        progress = progress | {"average_updates": average.num_updates}
    _write(path, tensors_of(model, optimizers, average), progress)


def save_weights(path: Path, state: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Write weights alone to `path`, as `save_checkpoint` does."""
    _write(path, {f"model.{name}": tensor for name, tensor in state.items()}, progress)


def tensors_of(model: nn.Module, optimizers: list[torch.optim.Optimizer], average: WeightAverage | None) -> dict[str, Tensor]:
    """Return all tensors of the state of training by name."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state.items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if value is not None:
                    tensors[f"optimizer.{number}.{names[parameter]}.{key}"] = torch.as_tensor(value)
    return tensors


def _write(path: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        safetensors.torch.save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={"kawara_checkpoint": json.dumps(progress)},
        )


def load_checkpoint(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], average: WeightAverage | None) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote and return its `progress`. Raises ModelFileError if the file is damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            progress = json.loads((file.metadata() or {})["kawara_checkpoint"])
        tensors = safetensors.torch.load_file(path)
        model.load_state_dict(_below(tensors, "model."))
        if average is not None:
            for name, tensor in _below(tensors, "average.").items():
                average.state[name].copy_(tensor)
            average.num_updates = progress["average_updates"]
        for number, optimizer in enumerate(optimizers):
            _restore_optimizer(optimizer, model, _below(tensors, f"optimizer.{number}."))
    except FileNotFoundError:
        raise ModelFileError(f"There is no checkpoint at {path}.", remedy="start again with another --out") from None
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ModelFileError(
            f"The checkpoint {path} is damaged or belongs to another model.",
            got=error,
            remedy="start again with another --out; best.safetensors and model.safetensors of this run may still be good",
        ) from None
    return progress


def read_progress(path: Path) -> dict[str, Any]:
    """Return only the `progress` of a checkpoint. Raises ModelFileError if the file is damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["kawara_checkpoint"])
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ModelFileError(f"The checkpoint {path} is damaged.", got=error) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return only the model's weights of a checkpoint. Raises ModelFileError if the file is damaged."""
    try:
        return _below(safetensors.torch.load_file(path), "model.")
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"The checkpoint {path} is damaged.", got=error) from None


def _restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameter_name, key = name.rsplit(".", 1)
        parameter = parameters[parameter_name]
        on = parameter.device if tensor.shape == parameter.shape or key == "step" else tensor.device
        # Copied: what was read is a map of the file, whose space would stay taken when the next checkpoint replaces it.
        optimizer.state[parameter][key] = tensor.to(on, copy=True)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
