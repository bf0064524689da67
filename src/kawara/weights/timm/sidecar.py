"""The .json beside weights in timm's layout: config.json as on timm's hub pages, or the arguments of the model flat. Read with care."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from kawara.errors import ModelFileError
from kawara.weights.foreign import RawCheckpoint

_MAX_SIDE_PX = 16_384


class Sidecar:
    """What is said about a model; every answer is None where nothing is said. Raises ModelFileError for values that make no sense."""

    def __init__(self, checkpoint: RawCheckpoint):
        self.path = checkpoint.path
        arguments = checkpoint.config.get("model_args")
        pretrained = checkpoint.config.get("pretrained_cfg")
        self.values: dict[str, Any] = {**checkpoint.config, **(arguments if isinstance(arguments, Mapping) else {})}
        self.pretrained: dict[str, Any] = dict(pretrained) if isinstance(pretrained, Mapping) else {}
        ours = checkpoint.config.get("kawara")
        self.ours: dict[str, Any] = dict(ours) if isinstance(ours, Mapping) else {}
        """What kawara wrote for itself: timm has no words for it."""

    @property
    def architecture(self) -> str | None:
        return self.text(self.values, "architecture")

    def whole(self, name: str) -> int | None:
        """Read a whole number of the arguments."""
        value = self.values.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise self._unclear(name, value, "a whole number")
        return value

    def number(self, values: Mapping[str, Any], name: str) -> float | None:
        """Read a finite number."""
        value = values.get(name)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value)):
            raise self._unclear(name, value, "a number")
        return None if value is None else float(value)

    def text(self, values: Mapping[str, Any], name: str) -> str | None:
        """Read a text."""
        value = values.get(name)
        if value is not None and not isinstance(value, str):
            raise self._unclear(name, value, "a text")
        return value

    def numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        """Read a list of `count` finite numbers of the preprocessing."""
        value = self.pretrained.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count:
            raise self._unclear(name, value, f"a list of {count} numbers")
        return tuple(self.number({name: each}, name) or 0.0 for each in value)

    def position_size(self) -> tuple[int, int] | None:
        """Read the size (H, W) in px that the position table is made for."""
        value = self.values.get("img_size")
        if value is None:
            return self.input_size()
        return self._size("img_size", value if isinstance(value, list) else [value, value])

    def input_size(self) -> tuple[int, int] | None:
        """Read the size (H, W) in px that images are prepared at."""
        value = self.pretrained.get("input_size")
        if value is None:
            return None
        return self._size("input_size", value[1:] if isinstance(value, list) and len(value) == 3 else value)

    def _size(self, name: str, value: Any) -> tuple[int, int]:
        whole = isinstance(value, list) and all(isinstance(side, int) and not isinstance(side, bool) for side in value)
        if not whole or len(value) != 2 or not 1 <= min(value) <= max(value) <= _MAX_SIDE_PX:
            raise self._unclear(name, value, f"whole numbers from 1 to {_MAX_SIDE_PX}")
        return value[0], value[1]

    def class_names(self, num_classes: int, notes: list[str]) -> tuple[str, ...]:
        """Return the names of the classes, else their numbers."""
        names = self.values.get("label_names") or self.pretrained.get("label_names")
        if isinstance(names, list) and num_classes:
            if len(names) == num_classes:
                return tuple(map(str, names))
            notes.append(f"The .json beside the file names {len(names)} classes and the head has {num_classes}: the classes are numbered.")
        return tuple(str(index) for index in range(num_classes))

    def _unclear(self, name: str, value: object, allowed: str) -> ModelFileError:
        return ModelFileError(f"The .json beside {self.path} has a {name} that makes no sense.", got=repr(value)[:80], allowed=allowed)
