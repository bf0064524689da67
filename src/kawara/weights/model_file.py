"""One `.safetensors` file that needs nothing beside it: weights, architecture, class names, preprocessing, where it came from.

The header of a safetensors file is a table of strings. kawara keeps one JSON text there, under the key "kawara".
Nothing in the file is executed when it is read.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from kawara import models
from kawara.config import from_dict, to_dict
from kawara.data.preprocessing import Preprocessing
from kawara.errors import ConfigError, ModelFileError
from kawara.files import replacing

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ModelCard:
    """Everything that a model file knows beside its weights."""

    name: str
    config: Any
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


def save_model(path: str | Path, state: dict[str, torch.Tensor], card: ModelCard) -> None:
    """Write weights and card to `path`, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt", "kawara": card_to_json(card)})


def card_to_json(card: ModelCard) -> str:
    """Return the text that carries a card in the header of a file, whatever its format."""
    header = {field.name: getattr(card, field.name) for field in dataclasses.fields(card)}
    header |= {
        "format_version": FORMAT_VERSION,
        "family": models.family_of(card.config),
        "config": to_dict(card.config),
        "preprocessing": to_dict(card.preprocessing),
    }
    return json.dumps(header, ensure_ascii=False)


def read_card(path: str | Path) -> ModelCard:
    """Read only the header of a model file. Raises ModelFileError if it is not one."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise ModelFileError(
            f"There is no model file at {path}.", remedy="the path of a model.safetensors that `kawara train` wrote"
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from None
    if "kawara" not in metadata:
        raise ModelFileError(
            f"{path} is a safetensors file but not a kawara model.", remedy="a model.safetensors that `kawara train` wrote"
        )
    return card_from_json(metadata["kawara"], path)


def card_from_json(text: str, path: str | Path) -> ModelCard:
    """Return the card that `card_to_json` wrote. Raises ModelFileError, naming `path`, if it is damaged or newer than this kawara."""
    try:
        header = json.loads(text)
        version = header["format_version"]
        if version > FORMAT_VERSION:
            raise ModelFileError(f"{path} was written by a newer kawara.", got=f"format {version}", allowed=f"up to {FORMAT_VERSION}")
        return ModelCard(
            name=header["name"],
            config=from_dict(models.config_type(header["family"]), header["config"], where=f"the header of {path}"),
            class_names=tuple(header["class_names"]),
            preprocessing=from_dict(Preprocessing, header["preprocessing"], where=f"the header of {path}"),
            recipe=header["recipe"],
            data=header["data"],
            metrics=header["metrics"],
            environment=header["environment"],
        )
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise ModelFileError(f"The header of {path} is damaged.", got=error) from None


def is_model_file(path: str | Path) -> bool:
    """Say whether a kawara model is at `path`: a safetensors file with kawara's header."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return "kawara" in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return False


def load_model(path: str | Path, device: torch.device | str = "cpu") -> tuple[models.ImageModel, ModelCard]:
    """Build the model of a file in evaluation mode, with its card. Raises ModelFileError if it cannot be read."""
    card = read_card(path)
    try:
        state = safetensors.torch.load_file(path, device=str(device))
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from None
    with torch.device("meta"):
        model = models.build(card.config)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ModelFileError(f"The weights in {path} do not fit its architecture.", got=error) from None
    return model.eval(), card


def _unreadable(path: str | Path, error: Exception) -> ModelFileError:
    remedy = "the copy is incomplete or damaged: copy or train it again"
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        # The length of the header comes first in a safetensors file and may begin with any byte; a brace follows it.
        if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
            remedy = "this looks like a pickle (.pt/.pth); kawara executes no code from files: save it as safetensors"
        elif len(start) == 9 and struct.unpack("<Q", start[:8])[0] > 100_000_000:
            remedy = "this is not a safetensors file"
    except OSError:
        pass
    return ModelFileError(f"{path} cannot be read as a model file.", got=error, remedy=remedy)
