"""Which rule moves which parameter: AdamW, Adam, SGD with momentum, and Muon for matrices.

Biases, gains, positions and tokens are not decayed, as in DeiT (2012.12877) and MAE (2111.06377). With layer-wise decay the
learning rate of layer i of L is multiplied by d^(L−i) (BEiT, MAE).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kawara.errors import ConfigError


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are moved.

    `lr` belongs to a batch of `lr_batch` images and is scaled linearly to the batch in use; `lr_batch=0` takes it as it is.
    Muon uses `muon_lr` for matrices and AdamW with `lr` for everything else. The rate of layer i of L is multiplied by
    `layer_decay`^(L − i), and that of everything but the head by `backbone_rate`: what was trained before moves less than what is new.
    """

    name: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    lr: float = 1e-3
    lr_batch: int = 0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    layer_decay: float = 1.0
    backbone_rate: float = 1.0
    clip_norm: float | None = None


_ACTS_IN = {
    "betas": ("adamw", "adam", "muon"),
    "eps": ("adamw", "adam", "muon"),
    "momentum": ("sgd",),
    "nesterov": ("sgd",),
    "muon_lr": ("muon",),
    "muon_momentum": ("muon",),
}
"""The settings that only some optimisers have."""


def refuse_foreign(asked: Iterable[str], config: OptimizerConfig) -> None:
    """Raise ConfigError if one of the settings `asked` for by name belongs to another optimiser."""
    for name in asked:
        if config.name not in _ACTS_IN.get(name, (config.name,)):
            raise ConfigError(
                f"The optimiser {config.name} has no {name}: the setting would have no effect.",
                got=f"optimizer.{name}",
                remedy=f"leave it out, or --set optimizer.name={_ACTS_IN[name][0]}",
            )


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of matrices (n, rows, columns) near 1 by a quintic Newton–Schulz iteration.

    Coefficients of Jordan et al. 2024 ("Muon: an optimizer for hidden layers"). In float32, because bfloat16 is
    emulated on most CPUs.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.mT if matrices.size(-2) > matrices.size(-1) else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):  # x ← a·x + (b·G + c·G²)·x with G = x xᵀ
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrices.size(-2) > matrices.size(-1) else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every matrix moves by the same amount in all its directions.

    Matrices of one shape are orthogonalised together. `parts` of a group says of how many matrices, one below the other, each
    weight is made; see `matrices_of`. A convolution kernel (C', C, k, k) is the matrix (C', C·k²).
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, weight_decay: float = 0.0, parts: int = 1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": parts})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                buffer = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"])  # Nesterov's look ahead
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                for part, target in zip(update.flatten(1).chunk(group["parts"]), parameter.flatten(1).chunk(group["parts"])):
                    by_shape.setdefault((part.size(0), part.size(1)), []).append((part, target))
            for (rows, columns), pairs in by_shape.items():
                directions = orthogonalise(torch.stack([part for part, _ in pairs]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for direction, (_, target) in zip(directions, pairs):
                    target.sub_(direction.reshape(target.shape), alpha=rate)


def build_optimizers(model: nn.Module, config: OptimizerConfig, batch_size: int) -> list[torch.optim.Optimizer]:
    """Return the optimisers of `model`; every group knows its peak rate as "peak_lr"."""
    scale = batch_size / config.lr_batch if config.lr_batch else 1.0
    no_decay: set[str] = model.no_decay()  # type: ignore[operator]
    heads: set[str] = model.head_parameters()  # type: ignore[operator]
    matrices_by_name = matrices_of(model) if config.name == "muon" else {}
    groups: dict[tuple[bool, float, int], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and name not in no_decay
        parts = matrices_by_name.get(name, 0)
        layer_scale = 1.0 if name in heads else config.backbone_rate
        if config.layer_decay != 1.0:
            layer_scale *= config.layer_decay ** (model.num_layers - model.layer_index(name))  # type: ignore[operator]
        groups.setdefault((decayed, layer_scale, parts), []).append(parameter)
    if not groups:
        raise ConfigError("No parameter is left to train.", remedy="freeze fewer blocks")

    plain, matrices = [], []
    for (decayed, layer_scale, parts), parameters in groups.items():
        peak = (config.muon_lr if parts else config.lr * scale) * layer_scale
        group = {"params": parameters, "lr": peak, "peak_lr": peak, "weight_decay": config.weight_decay if decayed else 0.0}
        if parts:
            matrices.append(group | {"parts": parts})
        else:
            plain.append(group)

    optimizers: list[torch.optim.Optimizer] = []
    if plain:
        optimizers.append(_plain_optimizer(plain, config))
    if matrices:
        optimizers.append(Muon(matrices, lr=config.muon_lr, momentum=config.muon_momentum))
    return optimizers


def matrices_of(model: nn.Module) -> dict[str, int]:
    """Return the names of the weights that are matrices to Muon, and how many matrices, one below the other, each is made of.

    Queries, keys and values are three; a convolution in g groups is g. Left out are the heads, whatever is never decayed (biases, norms,
    positions, tokens), and depthwise convolutions: each of their channels has a filter of its own, so nothing is mixed.
    """
    left_out: set[str] = model.no_decay() | model.head_parameters()  # type: ignore[operator]
    convolutions = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    parts = {}
    for name, parameter in model.named_parameters():
        groups = convolutions[name].groups if name in convolutions else 1
        depthwise = groups > 1 and groups == parameter.shape[0]
        if parameter.ndim > 1 and name not in left_out and not depthwise:
            parts[name] = 3 if name.endswith("qkv.weight") else groups
    return parts


def _plain_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    # fused: one pass over parameters and moments, about four times the speed of the default on a CPU
    if config.name == "sgd":
        is_divided = any(hasattr(parameter, "to_local") for group in groups for parameter in group["params"])  # see sharding
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=not is_divided)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def clip_gradients(parameters: Sequence[Tensor], clip_norm: float) -> Tensor:
    """Scale all gradients by min(1, c / (‖g‖₂ + 1e-6)) and return ‖g‖₂."""
    return nn.utils.clip_grad_norm_(parameters, clip_norm)
