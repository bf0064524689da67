"""Where a computation stopped being finite: the first layer of a model whose output holds an infinity or a NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def first_layer_not_finite(model: nn.Module, compute: Callable[[], Any]) -> str | None:
    """Run `compute`, which calls the model, and say where the first value that is not finite came from; None if there is none.

    Layers are watched in the order in which they finish, so that what is named is the innermost one. Weights that are not finite themselves
    are named as such, because every layer after them is then only a victim.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"{name}, a weight"
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(output)):
                given = all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(inputs))
                found.append(name if given else f"before {name}")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            compute()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
