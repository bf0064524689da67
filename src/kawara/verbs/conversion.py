"""`kawara convert`: a checkpoint of others in, a model of kawara out, or the other way; each tensor accounted for."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args

from kawara.analysis.cost import count_parameters
from kawara.config import to_dict
from kawara.errors import ConfigError, UnknownNameError
from kawara.files import refuse_existing
from kawara.weights import ModelCard, huggingface, save_model, timm
from kawara.weights.foreign import Fate, Hints
from kawara.weights.importing import open_model

Target = Literal["kawara", "timm", "huggingface"]

_ORDER = ("used", "resized", "dropped", "missing")
_BLOCK_NUMBER = re.compile(
    r"((?:^|[./_])(?:blocks|layers?|stages|s|b|encoderblock|encoder_layer|block|unit)[._]?)[0-9]+(?=[./]|$)|\[[0-9]+\]$"
)
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".npz", ".ckpt", ".h5", ".onnx", ".gguf")


@dataclass(frozen=True)
class FateGroup:
    """Tensors that fared alike: those whose names differ in the number of the block alone, and those that were dropped for one reason.

    What differs is shown as *.
    """

    source: str | None
    target: str | None
    count: int
    what: str
    how: str


@dataclass(frozen=True)
class Conversion:
    """What was read, what was written, and what became of every tensor."""

    source: str
    format: str
    """Of the source: "kawara", "timm", "huggingface", "torchvision" or "google"."""
    to: Target
    files: list[Path]
    card: ModelCard
    num_parameters: int
    fates: list[Fate]
    notes: list[str]
    """What had to be assumed, and in what the destination differs."""

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors were "used", "resized", "dropped" or "missing"; a tensor that became two counts once."""
        used = {fate.source: fate.what for fate in self.fates if fate.source is not None}
        counts = Counter(used.values())
        counts["missing"] = sum(fate.what == "missing" for fate in self.fates)
        return {what: counts[what] for what in _ORDER}

    @property
    def total(self) -> str:
        """The sum in words: "152 tensors: 150 used, 1 resized, 1 dropped"."""
        counts = self.counts
        missing = counts.pop("missing")
        parts = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"{sum(counts.values())} tensors: {parts}" + (f"; {missing} that the source does not have" if missing else "")

    def groups(self) -> list[FateGroup]:
        """Return the fates, alike ones together: what was used and resized, then what was dropped, then what is missing."""
        groups: Counter[tuple[str | None, str | None, str, str]] = Counter()
        dropped: dict[str, list[str]] = {}
        for fate in self.fates:
            if fate.what == "dropped" and fate.source is not None:
                dropped.setdefault(fate.how, []).append(fate.source)
            else:
                groups[_pattern(fate.source), _pattern(fate.target), fate.what, fate.how] += 1
        rows = [FateGroup(source, target, count, what, how) for (source, target, what, how), count in groups.items()]
        rows += [FateGroup(_common(names), None, len(names), "dropped", how) for how, names in dropped.items()]
        return sorted(rows, key=lambda row: _ORDER.index(row.what))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "source": self.source,
            "format": self.format,
            "to": self.to,
            "files": [str(path) for path in self.files],
            "model": self.card.name,
            "parameters": self.num_parameters,
            "config": to_dict(self.card.config),
            "preprocessing": to_dict(self.card.preprocessing),
            "class_names": list(self.card.class_names),
            "counts": self.counts,
            "notes": self.notes,
            "tensors": [{"what": fate.what, "source": fate.source, "target": fate.target, "how": fate.how} for fate in self.fates],
        }


def convert(source: str | Path, destination: str | Path, to: str | None = None, hints: Hints | None = None) -> Conversion:
    """Read a model of any format and write it in another.

    Args:
        source: a kawara model, a checkpoint of others (file or folder), or `hub:owner/name`.
        destination: a `.safetensors` file, or a folder; nothing may be there yet.
        to: "kawara", "timm" or "huggingface"; by default kawara for a file and huggingface for a folder.
        hints: what the source cannot say itself.

    Raises:
        RunFolderError: there is something at the destination.
        ModelFileError: the source cannot be read.
        ConfigError: the model has what the destination cannot express.
    """
    hints = hints or Hints()
    destination = Path(destination)
    target = _target(destination, to)
    refuse_existing(destination)
    model, card, foreign = open_model(str(source), hints=hints)
    if foreign is None and hints != Hints():
        raise ConfigError(f"{source} is a kawara model, which knows its heads and colours.", remedy="leave out --heads and --normalise")
    fates = [Fate("used", name, name, "as it is") for name in model.state_dict()] if foreign is None else foreign.fates
    notes = [] if foreign is None else list(foreign.notes)
    if target == "kawara":
        save_model(destination, model.state_dict(), card)
        files = [destination]
    elif target == "huggingface":
        files = huggingface.write(destination, model, card)
        notes += huggingface.differences(model.config, card)
    else:
        files = timm.write(destination, model, card)
    return Conversion(
        source=str(source),
        format="kawara" if foreign is None else foreign.format,
        to=target,
        files=files,
        card=card,
        num_parameters=count_parameters(model),
        fates=fates,
        notes=notes,
    )


def _target(destination: Path, to: str | None) -> Target:
    """Return what is to be written, from the look of the destination where the user does not say."""
    is_file = destination.suffix == ".safetensors"
    if destination.suffix in _OTHER_WEIGHTS:
        raise ConfigError(
            f"kawara does not write {destination.suffix} files.", got=destination, allowed="a .safetensors file, or the name of a folder"
        )
    if to is None:
        return "kawara" if is_file else "huggingface"
    for target in get_args(Target):
        if to == target:
            break
    else:
        raise UnknownNameError("format to convert to", to, get_args(Target))
    if target == "kawara" and not is_file:
        raise ConfigError("A kawara model is one file.", got=destination, remedy=f"{destination / 'model.safetensors'}")
    if target == "huggingface" and is_file:
        raise ConfigError("A model for transformers is a folder.", got=destination, remedy=str(destination.with_suffix("")))
    return target


def _pattern(name: str | None) -> str | None:
    """Replace the numbers of blocks by *."""
    return None if name is None else _BLOCK_NUMBER.sub(lambda match: f"{match[1]}*" if match[1] else "[*]", name)


def _common(names: list[str]) -> str:
    """Return what names have in common, up to a separator, and *; a single name as it is."""
    if len(names) == 1:
        return names[0]
    shared = takewhile(lambda letters: letters[0] == letters[1], zip(min(names), max(names)))
    return re.sub(r"[^./]*$", "*", "".join(letter for letter, _ in shared))
