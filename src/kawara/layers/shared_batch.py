"""Layers that look at the whole batch, where several processes hold some rows of it each.

Dropout and stochastic depth draw one mask after another from a generator, so what a row gets depends on the rows before it. Here every
process draws the masks of the whole batch and takes its rows: an image is then dropped as it would be in one process.

Batch normalisation (Ioffe & Szegedy, arXiv 1502.03167) needs mean μ and variance σ² of the whole batch. With the share p_r of process r and
its own μ_r and σ_r², they are (Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances", 1979)

    μ = Σ p_r μ_r        σ² = Σ p_r (σ_r² + (μ_r − μ)²)

and gradients flow back through them to every process. torch.nn.SyncBatchNorm does the same, on GPUs only.

Axes: B rows of the whole batch, N processes, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from kawara.errors import ConfigError
from kawara.layers.residual import StochasticDepth


def share_batch(model: nn.Module, rows: list[Tensor], rank: int) -> None:
    """Replace the layers of `model` that look at the whole batch by such as share it; parameters and names stay.

    `rows` says which rows of the batch each process holds; this one is number `rank`. They are no buffers: those are made equal in all
    processes by others. Raises ConfigError for dropout inside attention,
    whose draws belong to a kernel.
    """
    device = next(model.parameters()).device
    mine, batch_size = rows[rank].to(device), sum(map(len, rows))
    shares = torch.tensor([len(part) / batch_size for part in rows], dtype=torch.float64, device=device)
    for module in list(model.modules()):
        if getattr(module, "attention_dropout", 0.0):
            raise ConfigError(
                "Dropout inside attention cannot be shared by several processes.", remedy="--set model.options.attention_dropout=0"
            )
        for name, child in list(module.named_children()):
            if type(child) is nn.Dropout:
                setattr(module, name, SharedDropout(child.p, mine, batch_size))
            elif type(child) is StochasticDepth:
                setattr(module, name, SharedStochasticDepth(child.rate, mine, batch_size))
            elif type(child) is nn.BatchNorm2d:
                setattr(module, name, SharedBatchNorm(child, shares, rank, batch_size))


class SharedDropout(nn.Dropout):
    """Dropout that draws for all B rows of the batch and acts on those that are here."""

    def __init__(self, rate: float, rows: Tensor, batch_size: int):
        super().__init__(rate)
        self.rows, self.batch_size = rows, batch_size

    def forward(self, input: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return input
        return input * F.dropout(input.new_ones((self.batch_size, *input.shape[1:])), self.p)[self.rows]


class SharedStochasticDepth(StochasticDepth):
    """Stochastic depth that draws for all B rows of the batch and acts on those that are here."""

    def __init__(self, rate: float, rows: Tensor, batch_size: int):
        super().__init__(rate)
        self.rows, self.batch_size = rows, batch_size

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        return branch * self.mask(branch, self.batch_size)[self.rows]


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the whole batch of B rows; process r holds `shares[r]` of it."""

    def __init__(self, norm: nn.BatchNorm2d, shares: Tensor, rank: int, batch_size: int):
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var, self.num_batches_tracked = norm.running_mean, norm.running_var, norm.num_batches_tracked
        self.shares, self.rank, self.batch_size = shares, rank, batch_size
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        image = input.to(torch.promote_types(input.dtype, torch.float32))
        variance, mean = torch.var_mean(image, dim=(0, 2, 3), correction=0)
        means, variances = _gathered(torch.stack((mean, variance)), len(self.shares), self.rank).unbind(1)
        shares = self.shares.to(mean.dtype)[:, None]
        mean = (shares * means).sum(dim=0)
        variance = (shares * (variances + (means - mean).square())).sum(dim=0)
        count = self.batch_size * image.shape[2] * image.shape[3]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (image * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(input.dtype)


@torch.compiler.disable()  # a compiled graph ends where processes wait for each other
def _gathered(values: Tensor, size: int, rank: int) -> Tensor:
    return _Gather.apply(values, size, rank)


class _Gather(torch.autograd.Function):
    """Stack a tensor of every process: (…) to (N, …). Backwards each gets what all make of it, summed."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, size: int, rank: int) -> Tensor:
        ctx.rank = rank
        gathered = values.new_zeros((size, *values.shape))
        gathered[rank] = values
        torch.distributed.all_reduce(gathered)
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].contiguous()
        torch.distributed.all_reduce(gradient)
        return gradient[ctx.rank], None, None
