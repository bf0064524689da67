"""Exponential moving average of the weights: θ' ← d·θ' + (1 − d)·θ, with d growing from 0 so that the start is forgotten."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightAverage:
    """The moving average of a model's parameters and statistics; counters are copied."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.state: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's present weights into the average."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (10 + self.num_updates))
        averages, values = [], []
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                averages.append(_held(self.state[name]))
                values.append(_held(tensor))
            else:
                self.state[name].copy_(tensor)
        torch._foreach_lerp_(averages, values, 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the average; done twice, nothing has changed."""
        for name, tensor in model.state_dict().items():
            present = tensor.clone()
            tensor.copy_(self.state[name])
            self.state[name].copy_(present)


def _held(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds: all of it, unless it is divided (`sharding`)."""
    return getattr(tensor, "to_local", lambda: tensor)()
