"""What a model costs: parameters and multiply-accumulates (MACs).

For a ViT, the MACs of one image are known in closed form:

    h·w·(C P²)·D + L·(4 N D² + 2 N² D + 2 N D F) + heads·D·K

with the matrix products of the attention (2 N² D) included and everything that is not a product (norms, softmax, additions) left out. What
papers of this field call "GFLOPs" is nearly always GMACs. A convolutional stem replaces the first term by the sum of its convolutions.

Axes: C channels, P patch side, h w patch grid, N tokens with prefix, D width, F MLP hidden, L blocks, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kawara.analysis.evaluation_mode import evaluating
from kawara.models import ImageModel, ViTConfig


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable values of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def vit_macs(config: ViTConfig, image_size: tuple[int, int] | None = None) -> int:
    """Return the multiply-accumulates of one image by the formula; `image_size` None is the model's own."""
    height, width = config.image_size if image_size is None else image_size
    h, w = -(-height // config.patch_size), -(-width // config.patch_size)
    num_tokens = config.num_prefix + h * w
    block = 4 * num_tokens * config.width**2 + 2 * num_tokens**2 * config.width + 2 * num_tokens * config.width * config.mlp_hidden
    num_heads = 2 if config.distillation_token else 1
    return _stem_macs(config, (height, width)) + config.depth * block + num_heads * config.width * config.num_classes


def count_macs(model: ImageModel, image_size: tuple[int, int] | None = None) -> int:
    """Return the multiply-accumulates of one image by running the model and counting its products.

    Works for every family, and on the meta device at no cost. Attention is run explicitly meanwhile, because the counter does not see
    into fused kernels on a CPU.
    """
    height, width = model.config.image_size if image_size is None else image_size
    parameter = next(model.parameters())
    image = torch.zeros(1, model.config.channels, height, width, device=parameter.device, dtype=parameter.dtype)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), evaluating(model), _explicit_attention(model), sdpa_kernel(SDPBackend.MATH), counter:
        model.apply_heads(model.features(image))  # every token in every block, as the papers count
    return counter.get_total_flops() // 2


def _stem_macs(config: ViTConfig, image_size: tuple[int, int]) -> int:
    h, w = image_size
    if config.stem == "patch":
        return (h // config.patch_size) * (w // config.patch_size) * config.channels * config.patch_size**2 * config.width
    macs, channels = 0, config.channels
    for channels_out in config.stem_channels:
        h, w = -(-h // 2), -(-w // 2)
        macs += h * w * 9 * channels * channels_out
        channels = channels_out
    if config.stem_projection or channels != config.width:
        macs += h * w * channels * config.width
    return macs


@contextmanager
def _explicit_attention(model: nn.Module) -> Iterator[None]:
    fused = {module: module.fused for module in model.modules() if hasattr(module, "fused")}
    for module in fused:
        module.fused = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, was_fused in fused.items():
            module.fused = was_fused  # type: ignore[assignment]
