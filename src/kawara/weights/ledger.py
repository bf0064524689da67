"""The books of a reader of checkpoints: each tensor of the file is used or dropped, once, and each tensor of the model has a source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from kawara.errors import ModelFileError
from kawara.weights.foreign import Fate, RawCheckpoint


class Ledger:
    """Hold the tensors of a checkpoint under new names until they are used or dropped, and write down what became of them.

    Every method raises ModelFileError, naming the file and the tensor, where something does not fit.
    """

    def __init__(self, checkpoint: RawCheckpoint, rename: Callable[[str], str]):
        self.path = checkpoint.path
        self.state: dict[str, Tensor] = {}
        """What the model is given, by its own names; floating point of any width becomes float32."""
        self.fates: list[Fate] = []
        self._left: dict[str, tuple[str, Tensor]] = {}
        for source, tensor in checkpoint.tensors.items():
            name = rename(source)
            if name in self._left:
                raise ModelFileError(f"{self.path} holds one tensor twice.", got=f"{self._left[name][0]} and {source}")
            self._left[name] = source, tensor

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def __iter__(self) -> Iterator[str]:
        """Go through the new names of the tensors that are left."""
        return iter(list(self._left))

    def shape(self, name: str, num_axes: int) -> tuple[int, ...]:
        """Return the shape of a tensor that is left and must have `num_axes` axes."""
        shape = tuple(self.tensor(name).shape)
        if len(shape) != num_axes:
            raise ModelFileError(
                f"A tensor in {self.path} has an unexpected shape.", got=f"{self._left[name][0]} {shape}", allowed=f"{num_axes} axes"
            )
        return shape

    def tensor(self, name: str) -> Tensor:
        """Look at a tensor that is left, without taking it."""
        if name not in self._left:
            raise ModelFileError(f"{self.path} has no tensor for {name}.", remedy="a complete copy of the checkpoint")
        return self._left[name][1]

    def use(
        self, target: str, *names: str, how: str = "as it is", join: Callable[[Sequence[Tensor]], Tensor] = lambda parts: parts[0]
    ) -> None:
        """Make `target` from the tensors called `names` (default: the one of the same name) by `join`."""
        parts = []
        for name in names or (target,):
            tensor = self.tensor(name)
            if not tensor.is_floating_point():
                raise ModelFileError(
                    f"A tensor in {self.path} does not hold floating-point numbers.", got=f"{self._left[name][0]}: {tensor.dtype}"
                )
            source, _ = self._left.pop(name)
            widened = "" if tensor.dtype == torch.float32 else f", from {str(tensor.dtype).removeprefix('torch.')} to float32"
            self.fates.append(Fate("used", source, target, how + widened))
            parts.append(tensor.float())
        self.state[target] = join(parts).contiguous()

    def count(self, target: str) -> None:
        """Make `target`, a batch norm's count of batches, from the whole number of the same name; 0 where the file has none."""
        if target not in self:
            self.fill(target, torch.tensor(0), "0: it counts batches of training and changes no answer")
            return
        if self.tensor(target).dtype != torch.int64:
            raise ModelFileError(
                f"A counter in {self.path} is not a whole number.", got=f"{self._left[target][0]}: {self.tensor(target).dtype}"
            )
        source, self.state[target] = self._left.pop(target)
        self.fates.append(Fate("used", source, target, "as it is"))

    def drop(self, names: Iterable[str], why: str) -> None:
        """Leave the tensors called `names` out, for the reason `why`."""
        for name in names:
            source, _ = self._left.pop(name)
            self.fates.append(Fate("dropped", source, None, why))

    def fill(self, target: str, value: Tensor, how: str) -> None:
        """Give the model a tensor that the file does not hold."""
        self.state[target] = value
        self.fates.append(Fate("missing", None, target, how))

    def close(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Use what is left under the names of the model; raise unless exactly the tensors of `shapes` are there then."""
        for name in shapes:
            if name not in self.state:
                self.use(name)
        if self._left:
            unknown = [source for source, _ in self._left.values()]
            raise ModelFileError(
                f"{self.path} holds tensors that kawara cannot explain, so it may be another kind of model.",
                got=", ".join(unknown[:4]) + (f", … ({len(unknown)} in all)" if len(unknown) > 4 else ""),
            )
        for name, shape in shapes.items():
            if tuple(self.state[name].shape) != shape:
                sources = ", ".join(fate.source for fate in self.fates if fate.target == name and fate.source)
                raise ModelFileError(
                    f"The shapes in {self.path} do not go together.",
                    got=f"{sources} gives {tuple(self.state[name].shape)}",
                    allowed=f"{shape} for {name}",
                )
