"""Named places in a model where activations are read or replaced.

A place is the name of a submodule, as in its state dict: `blocks.3.attn` means what that module returns, `blocks.3.attn:input` what it is
given (`:input1` its second argument). A `*` stands for one part of a name: `blocks.*.mlp`. A model that nobody taps runs at full speed:
the taps are forward hooks that exist only inside the `with` statement.

    with taps.read(model, "blocks.*.attn", "blocks.3.skip1:input1") as found:
        model(image)
    found["blocks.0.attn"]                                                          # (B, N, D)

    with taps.replace(model, {"blocks.3.skip1": lambda output, inputs: inputs[1]}):  # take this skip connection away
        model(image)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from kawara.errors import ConfigError, UnknownNameError

Replacement = Callable[[Any, tuple[Any, ...]], Any]
"""(what the module returned, its positional arguments) -> what to return instead."""


def places(model: nn.Module) -> list[str]:
    """List the places of a model, in the order they were defined."""
    return [name for name, _ in model.named_modules() if name]


@contextmanager
def read(
    model: nn.Module, *names: str, detach: bool = True, keep: Callable[[Any], Any] = lambda activation: activation
) -> Iterator[dict[str, Any]]:
    """Keep the activations at the named places while the model runs.

    Yields a dictionary from name to activation, filled by each forward pass (the latest one stays). `detach=False` keeps the graph,
    for gradients. `keep` says what to hold of each activation, so that a summary of every layer costs the memory of summaries alone.
    Raises UnknownNameError for a place that does not exist.
    """
    found: dict[str, Any] = {}
    handles = []
    try:
        for name in names:
            pattern, argument = _parse(name)
            for place in _matching(model, pattern):
                label = place if argument is None else f"{place}:{name.partition(':')[2]}"
                handles.append(model.get_submodule(place).register_forward_hook(_reader(found, label, argument, detach, keep)))
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replace(model: nn.Module, replacements: Mapping[str, Replacement]) -> Iterator[None]:
    """Replace what the named modules return by what the functions make of it while the model runs."""
    handles = []
    try:
        for name, function in replacements.items():
            pattern, argument = _parse(name)
            if argument is not None:
                raise ConfigError("Only what a module returns can be replaced.", got=name, remedy=f"{pattern}, or a module before it")
            for place in _matching(model, pattern):
                handles.append(model.get_submodule(place).register_forward_hook(_replacer(function)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parse(name: str) -> tuple[str, int | None]:
    """Split `place:input1` into the place and the number of the argument (None: what it returns)."""
    place, colon, part = name.partition(":")
    if not colon:
        return place, None
    number = part.removeprefix("input") or "0"
    if not part.startswith("input") or not number.isdecimal():
        raise ConfigError("A tap reads a module's output or one of its arguments.", got=name, allowed="place, place:input, place:input1")
    return place, int(number)


def _matching(model: nn.Module, pattern: str) -> list[str]:
    parts = pattern.split(".")
    known = places(model)
    matches = [
        place
        for place in known
        if place.count(".") == len(parts) - 1 and all(fnmatchcase(part, wanted) for part, wanted in zip(place.split("."), parts))
    ]
    if not matches:
        raise UnknownNameError("place to tap", pattern, known)
    return matches


def _reader(found: dict[str, Any], label: str, argument: int | None, detach: bool, keep: Callable[[Any], Any]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        activation = output if argument is None else inputs[argument]
        found[label] = keep(activation.detach() if detach and isinstance(activation, Tensor) else activation)

    return hook


def _replacer(function: Replacement) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return function(output, inputs)

    return hook
