"""Layers in int8: what they see is measured, and they are replaced by twins that round as the exported graph will.

Post-training quantisation (arXiv 1712.05877; arXiv 2004.09602): y = s_x s_w Σ (q_x − z) q_w + b, with activations in uint8, one range for
each layer, measured beforehand; weights in int8, one step for each output channel; sums in int32. A twin writes this as quantise →
dequantise → float product, which run times know for what it is and compute in integers.

In int8 are the linear layers of blocks, convolutions without groups and the projection of patches, whose inputs are pixels and so uint8
already; in float32 stay norms, softmax, GELU, residual sums, the products of attention, other stems and the head (docs/decisions/0009).
What a convolution gives is quantised too: run times compute it in int8 only then.

With 7 bits, weights stay within ±63: CPUs of x86 without VNNI add two products u8 · s8 in int16, where 2 · 255 · 127 does not fit and
2 · 255 · 63 does.

Axes: B batch, C channels, n numbers that were seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # it registers the operators below
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kawara.data.preprocessing import Preprocessing
from kawara.edge.folding import PLAIN_CONVOLUTIONS
from kawara.edge.ranges import LEVELS, RANGES, Range, RangeKind, weight_scales
from kawara.layers.patch import PatchProjection, cut_patches
from kawara.models.convnet import ConvNet
from kawara.models.interface import ImageModel

_SAMPLE_OF_BATCH = 2**12
_RECTIFIERS = (F.relu, torch.relu, Tensor.relu)

_decomposed = torch.ops.quantized_decomposed


def quantisable(network: ImageModel) -> list[str]:
    """Return the names of the layers whose ranges are to be measured for int8: stem and head are left out."""
    outside = _float_parts(network)
    return [
        name
        for name, module in network.named_modules()
        if not any(name == part or name.startswith(f"{part}.") for part in outside)
        and (type(module) is nn.Linear or (type(module) in PLAIN_CONVOLUTIONS and getattr(module, "groups", 0) == 1))
    ]


def _float_parts(network: ImageModel) -> tuple[str, ...]:
    """Return the names of stem and head."""
    stem = network.stem_names if isinstance(network, ConvNet) else ("patch_embed",)
    return (*stem, *network.head_names, "head", "pre_logits")


@dataclass
class Seen:
    """What went into a layer, and for a convolution what came out, over all calibration images."""

    inputs: list[Tensor] = field(default_factory=list)
    """Samples (n,), the smallest and the largest number always among them."""
    outputs: list[Tensor] = field(default_factory=list)
    largest: Tensor | None = None
    """max|X_j| (C,) of each channel of the input of a linear layer."""
    rectified: bool = False
    """Whether ReLU follows; outputs are those behind it."""


@torch.no_grad()
def observe(network: nn.Module, names: Iterable[str], batches: Iterable[Tensor], seed: int = 0) -> dict[str, Seen]:
    """Run normalised images (B, C, H, W) through a network and return what each of the layers saw."""
    seen = {name: Seen() for name in names}
    draw = torch.Generator().manual_seed(seed)
    given: dict[int, tuple[str, Tensor]] = {}  # by identity; kept until the images are through, so that no other tensor gets the same
    behind: dict[str, Tensor] = {}

    def sample(values: Tensor) -> Tensor:
        values = values.reshape(-1)
        drawn = values[torch.randint(len(values), (_SAMPLE_OF_BATCH,), generator=draw)]
        return torch.cat([drawn, torch.stack(values.aminmax())])

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name].inputs.append(sample(inputs[0]))
            if isinstance(module, nn.Linear):
                largest, before = inputs[0].abs().flatten(0, -2).amax(dim=0), seen[name].largest
                seen[name].largest = largest if before is None else largest.maximum(before)
            else:
                given[id(output)] = name, output
                behind[name] = output

        return hook

    class Rectified(TorchFunctionMode):
        """Notice where ReLU takes what a convolution gives."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func in _RECTIFIERS and id(args[0]) in given:
                name, _ = given[id(args[0])]
                behind[name], seen[name].rectified = result, True
            return result

    hooks = [network.get_submodule(name).register_forward_hook(look(name)) for name in seen]
    try:
        for images in batches:
            with Rectified():
                network(images)
            for name, output in behind.items():
                seen[name].outputs.append(sample(output))
            given.clear()
            behind.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


class QuantisedLinear(nn.Module):
    """A linear layer (..., C) to (..., C') in int8."""

    def __init__(self, linear: nn.Linear, inputs: Range, bits: int):
        super().__init__()
        self.inputs = inputs
        self.bias = linear.bias
        self.weight: Tensor
        self.scales: Tensor
        scales = weight_scales(linear.weight, bits)
        # (C, C'), as the product takes it: run times see that a weight is int8 only where nothing stands between.
        self.register_buffer("weight", (linear.weight.detach() / scales[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scales", scales)

    def forward(self, tokens: Tensor) -> Tensor:
        product = _rounded(tokens, self.inputs) @ _dequantised(self.weight, self.scales, axis=1)
        return product if self.bias is None else product + self.bias


class QuantisedConv2d(nn.Module):
    """A convolution (B, C, H, W) to (B, C', h, w) in int8, what it gives included; with ReLU where that follows."""

    def __init__(self, convolution: nn.Conv2d, inputs: Range, outputs: Range, rectified: bool, bits: int):
        super().__init__()
        self.inputs, self.outputs, self.rectified = inputs, outputs, rectified
        self.stride, self.padding, self.dilation = convolution.stride, convolution.padding, convolution.dilation
        self.bias = convolution.bias
        self.weight: Tensor
        self.scales: Tensor
        scales = weight_scales(convolution.weight, bits)
        self.register_buffer("weight", (convolution.weight.detach() / scales[:, None, None, None]).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, maps: Tensor) -> Tensor:
        weight = _dequantised(self.weight, self.scales, axis=0)
        maps = F.conv2d(_rounded(maps, self.inputs), weight, self.bias, self.stride, self.padding, self.dilation)
        # ReLU comes again in the network, where it changes nothing; here it spares the range the negative half.
        return _rounded(F.relu(maps) if self.rectified else maps, self.outputs)


class QuantisedPatches(nn.Module):
    """The projection of patches, (B, C, H, W) to (B, h·w, D), in int8: pixels of uint8 are its inputs, to normalise them is in its weights.

    E (x − μ)/σ + b = (E/255σ) q + (b − E μ/σ) for pixels q = 255 x: nothing is lost but in the weights.
    """

    def __init__(self, projection: PatchProjection, preprocessing: Preprocessing, bits: int):
        super().__init__()
        self.patch_size = projection.weight.shape[-1]
        self.weight: Tensor
        self.scales: Tensor
        self.bias: Tensor
        self.mean: Tensor
        self.std: Tensor
        mean, std = (torch.tensor(each)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
        weight = projection.weight.detach() / (255 * std)
        scales = weight_scales(weight, bits)
        self.register_buffer("mean", 255 * mean)
        self.register_buffer("std", 255 * std)
        self.register_buffer("weight", (weight.flatten(1) / scales[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scales", scales)
        self.register_buffer("bias", projection.bias.detach() - (projection.weight.detach() * mean / std).flatten(1).sum(dim=1))

    def forward(self, image: Tensor) -> Tensor:
        patches = cut_patches(image * self.std + self.mean, self.patch_size)
        return _rounded(patches, Range(0.0, LEVELS)) @ _dequantised(self.weight, self.scales, axis=1) + self.bias


def twin_of_patches(network: ImageModel, preprocessing: Preprocessing, bits: int) -> dict[str, nn.Module]:
    """Return the projection of patches in int8, by name; nothing for a network that begins otherwise."""
    return {
        name: QuantisedPatches(module, preprocessing, bits)
        for name, module in network.named_modules()
        if isinstance(module, PatchProjection)
    }


def twins(network: nn.Module, seen: Mapping[str, Seen], kind: RangeKind, bits: int) -> dict[str, nn.Module]:
    """Return the layers that were observed in int8, by name, with ranges of one kind and weights of 7 or 8 bits."""
    made: dict[str, nn.Module] = {}
    for name, record in seen.items():
        layer = network.get_submodule(name)
        inputs = RANGES[kind](torch.cat(record.inputs))
        if isinstance(layer, nn.Linear):
            made[name] = QuantisedLinear(layer, inputs, bits)
        else:
            assert isinstance(layer, nn.Conv2d)
            made[name] = QuantisedConv2d(layer, inputs, RANGES[kind](torch.cat(record.outputs)), record.rectified, bits)
    return made


@contextlib.contextmanager
def replaced(network: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[nn.Module]:
    """Put other layers into a network, by name, inside the block."""
    before = {name: network.get_submodule(name) for name in layers}
    try:
        for name, layer in layers.items():
            network.set_submodule(name, layer)
        yield network
    finally:
        for name, layer in before.items():
            network.set_submodule(name, layer)


def _rounded(values: Tensor, to: Range) -> Tensor:
    arguments = (to.scale, to.zero_point, 0, LEVELS, torch.uint8)
    return _decomposed.dequantize_per_tensor(_decomposed.quantize_per_tensor(values, *arguments), *arguments)


def _dequantised(weight: Tensor, scales: Tensor, axis: int) -> Tensor:
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    return _decomposed.dequantize_per_channel(weight, scales, zeros, axis, -127, 127, torch.int8)
