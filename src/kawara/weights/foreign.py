"""Checkpoints that others wrote: what is read from them, and what became of every tensor.

A format is one file of this package: it recognises its checkpoints by their tensor names, and turns them into a `Foreign`, a model
configuration with a state under kawara's own names. Nothing is dropped in silence: every tensor of the file has a `Fate`, and so has
every tensor of the model that the file does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from kawara.data.preprocessing import Preprocessing

Normalisation = Literal["imagenet", "half"]


@dataclass(frozen=True)
class RawCheckpoint:
    """What lies in a file, before anybody has made sense of it."""

    path: str
    """As the user gave it: for messages."""
    tensors: Mapping[str, Tensor]
    """By the names of the file, on the CPU; wrappers ("model", "state_dict", "teacher", …) already opened."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json beside the weights, or the .json of the same stem; empty where there is none."""
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    """preprocessor_config.json beside the weights; empty where there is none."""
    wrapper: str | None = None
    """The key of the dictionary that the tensors lay under."""
    files: tuple[Path, ...] = ()
    """What was read."""
    notes: tuple[str, ...] = ()
    """What was left aside on opening the file, one sentence each."""


@dataclass(frozen=True)
class Hints:
    """What a person may say where a file cannot: the number of attention heads, and the colours it was trained with."""

    heads: int | None = None
    normalisation: Normalisation | None = None


@dataclass(frozen=True)
class Fate:
    """What became of one tensor.

    used: `how` it was brought into kawara's layout ("as it is", "transposed", "q, k and v stacked").
    resized: `how` (method, from, to). dropped: `how` says why. missing: the file has none; `how` says how it was initialised.
    Where one tensor of the file holds many (a layer axis), `source` is `name[i]`.
    """

    what: Literal["used", "resized", "dropped", "missing"]
    source: str | None
    target: str | None
    how: str


@dataclass(frozen=True)
class Foreign:
    """A checkpoint understood: ready to be built."""

    format: str
    """The name of the format: "timm", "huggingface", "torchvision", "google"."""
    name: str
    """What to call the model: the source's own name for it where known ("deit_tiny_patch16_224"), else kawara's ("vit_tiny_16")."""
    config: Any
    state: dict[str, Tensor]
    fates: list[Fate]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    """One for each logit; "0", "1", … where the source has no names; empty for a backbone without head."""
    notes: list[str] = field(default_factory=list)
    """What had to be assumed, one sentence each, for the user to read."""


@dataclass(frozen=True)
class Format:
    """A layout of checkpoints."""

    name: str
    recognises: Callable[[RawCheckpoint], bool]
    """Whether the names of the tensors are of this layout."""
    read: Callable[[RawCheckpoint, Hints], Foreign]
    """Raises ModelFileError for a tensor that cannot be explained, a family that kawara does not have, or a fact that is not known."""
