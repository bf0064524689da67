"""Rewrite a network into one that computes the same, in which quantisation loses less.

Batch norm behind a convolution is a part of it (Jacob et al., arXiv 1712.05877, §3.2; f = γ / √(σ² + ε)):

    BN(W * x + b) = (f W) * x + (f (b − μ) + β)

SmoothQuant (arXiv 2211.10438, eqs. 3–4) moves outlier channels from activations, which share one range, into weights, which have one for
each output channel. Behind a LayerNorm it costs nothing:

    s_j = max|X_j|^α / max|W_j|^(1−α)        (X / s) (s W)ᵀ = X Wᵀ: γ and β of the norm are divided by s, columns of W multiplied

Axes: C channels, j channels of the layer's input.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kawara.layers.convolution import ChannelsLastConv2d
from kawara.layers.residual import Block
from kawara.models.convnext import ConvNeXtBlock

PLAIN_CONVOLUTIONS = (nn.Conv2d, ChannelsLastConv2d)
"""Exactly these: what is made of them may compute something else with the weight."""
ALPHA = 0.5
_SMALLEST = 1e-5


@torch.no_grad()
def fold_batch_norms(network: nn.Module, image: Tensor) -> None:
    """Make every batch norm that directly follows a convolution part of it, in place. `image` (1, C, H, W) shows which follows which."""
    made_by: dict[int, nn.Conv2d] = {}
    pairs: list[tuple[str, nn.Conv2d]] = []
    outputs: list[Tensor] = []  # kept, so that no other tensor gets the identity of one

    def of_convolution(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made_by[id(output)] = module
        outputs.append(output)

    names = {module: name for name, module in network.named_modules()}

    def of_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in made_by:
            pairs.append((names[module], made_by[id(inputs[0])]))

    hooks = [module.register_forward_hook(of_convolution) for module in names if type(module) in PLAIN_CONVOLUTIONS]
    hooks += [module.register_forward_pre_hook(of_norm) for module in names if isinstance(module, nn.BatchNorm2d)]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    for name, convolution in pairs:
        norm = network.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = torch.zeros_like(factor) if convolution.bias is None else convolution.bias
        convolution.weight.mul_(factor[:, None, None, None])
        convolution.bias = nn.Parameter(factor * (bias - norm.running_mean) + norm.bias)
        network.set_submodule(name, nn.Identity())


def smoothable(network: nn.Module) -> dict[str, tuple[nn.LayerNorm, nn.Linear]]:
    """Return the linear layers that take what a LayerNorm of their block gives, by name, and that norm."""
    pairs: dict[str, tuple[nn.LayerNorm, nn.Linear]] = {}
    for name, block in network.named_modules():
        if isinstance(block, Block):
            pairs[f"{name}.attn.qkv"] = block.norm1, block.attn.qkv
            pairs[f"{name}.mlp.fc1"] = block.norm2, block.mlp.fc1
        elif isinstance(block, ConvNeXtBlock):
            pairs[f"{name}.mlp.fc1"] = block.norm, block.mlp.fc1
    return pairs


@torch.no_grad()
def smooth(network: nn.Module, largest: Mapping[str, Tensor], alpha: float = ALPHA) -> None:
    """Apply SmoothQuant in place; `largest` are max|X_j| (C,) of the inputs of the linear layers by name."""
    for name, (norm, linear) in smoothable(network).items():
        factors = smoothing_factors(largest[name], linear.weight, alpha)
        norm.weight.div_(factors)
        norm.bias.div_(factors)
        linear.weight.mul_(factors)


def smoothing_factors(largest: Tensor, weight: Tensor, alpha: float = ALPHA) -> Tensor:
    """Return s (C,) for max|X_j| (C,) and a weight (C', C)."""
    of_weight = weight.detach().abs().amax(dim=0).clamp(min=_SMALLEST)
    return (largest.clamp(min=_SMALLEST) ** alpha / of_weight ** (1 - alpha)).clamp(min=_SMALLEST)
