"""What a model costs: parameters and multiply-accumulates (MACs).

For a ViT, the MACs of one image are known in closed form:

    h·w·(C P²)·D + L·(4 N D² + 2 N² D + 2 N D F) + heads·D·K

with the matrix products of the attention (2 N² D) included and everything that is not a product (norms, softmax, additions) left out. What
papers of this field call "GFLOPs" is nearly always GMACs. A convolutional stem or a ResNet replaces the first term by the sum of its
convolutions (in a ResNet the P of the patches is smaller), SwiGLU takes 3 N D F in place of 2 N D F, and attention pooling over S = h·w
patches adds 2 D² + 2 S D² + 2 S D + 2 D F. With token merging every block has its own N: its attention works on those that it is given, its
MLP on those that are left, and the matching multiplies half of the patches with the other half, N_a N_b E.

For a CNN they are the sum over its convolutions and matrices, C'·(C/groups)·k² for each cell of the map that comes out: `count_macs`
finds it by running the model. timm's published figures also count two operations for each value out of a batch norm and five out of a layer
norm, which makes them 0.2 to 1.1 % higher (ResNet-50: 4.11 G, the products alone 4.09).

Axes: C channels, P patch side, k kernel side, h w patch grid, N tokens with prefix, S patches, D width, F MLP hidden, L blocks, K classes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kawara.analysis.evaluation_mode import evaluating
from kawara.layers.attention import explicit_attention
from kawara.layers.bit_resnet import EXPANSION, resnet_stride
from kawara.layers.merging import num_merged
from kawara.models import ImageModel, ViTConfig


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable values of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def vit_macs(config: ViTConfig, image_size: tuple[int, int] | None = None) -> int:
    """Return the multiply-accumulates of one image by the formula; `image_size` None is the model's own."""
    height, width = config.image_size if image_size is None else image_size
    h, w = -(-height // config.patch_size), -(-width // config.patch_size)
    num_tokens = config.num_prefix + h * w
    mlp = (3 if config.mlp == "swiglu" else 2) * config.width * config.mlp_hidden
    macs = _stem_macs(config, (height, width))
    for r in config.merge_schedule:
        macs += 4 * num_tokens * config.width**2 + 2 * num_tokens**2 * config.width
        r = num_merged(r, num_tokens, config.num_prefix)
        if r:
            macs += (num_tokens - config.num_prefix) ** 2 // 4 * (config.width // config.heads)
        num_tokens -= r
        macs += num_tokens * mlp
    return macs + _head_macs(config, num_tokens - config.num_prefix)


def count_macs(model: ImageModel, image_size: tuple[int, int] | None = None) -> int:
    """Return the multiply-accumulates of one image by running the model and counting its products.

    Works for every family, and on the meta device at no cost. Attention is run explicitly meanwhile, because the counter does not see
    into fused kernels on a CPU.
    """
    height, width = model.config.image_size if image_size is None else image_size
    parameter = next(model.parameters())
    image = torch.zeros(1, model.config.channels, height, width, device=parameter.device, dtype=parameter.dtype)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), evaluating(model), explicit_attention(model), sdpa_kernel(SDPBackend.MATH), counter:
        model.apply_heads(model.features(image))  # every token in every block, as the papers count
    return counter.get_total_flops() // 2


def _head_macs(config: ViTConfig, num_patches: int) -> int:
    macs = 0
    if config.pool == "map":
        macs += 2 * (1 + num_patches) * config.width**2 + 2 * num_patches * config.width + 2 * config.width * config.mlp_hidden
    if config.head_hidden is not None:
        return macs + (config.width + config.num_classes) * config.head_hidden
    return macs + (2 if config.distillation_token else 1) * config.width * config.num_classes


def _stem_macs(config: ViTConfig, image_size: tuple[int, int]) -> int:
    h, w = image_size
    if config.stem == "patch":
        return (h // config.patch_size) * (w // config.patch_size) * config.channels * config.patch_size**2 * config.width
    if config.stem == "resnet":
        return _resnet_macs(config, image_size)
    macs, channels = 0, config.channels
    for channels_out in config.stem_channels:
        h, w = -(-h // 2), -(-w // 2)
        macs += h * w * 9 * channels * channels_out
        channels = channels_out
    if config.stem_projection or channels != config.width:
        macs += h * w * channels * config.width
    return macs


def _resnet_macs(config: ViTConfig, image_size: tuple[int, int]) -> int:
    cells, channels = image_size[0] * image_size[1] // 4, config.resnet_width
    macs = cells * 49 * config.channels * channels
    cells //= 4
    for stage, num_units in enumerate(config.resnet_blocks):
        hidden = config.resnet_width << stage
        for unit in range(num_units):
            cells_in, cells = cells, cells // 4 if stage and not unit else cells
            macs += cells_in * channels * hidden + cells * (9 * hidden**2 + hidden * EXPANSION * hidden)
            if not unit:
                macs += cells * channels * EXPANSION * hidden
            channels = EXPANSION * hidden
    patch = config.patch_size // resnet_stride(config.resnet_blocks)
    return macs + cells // patch**2 * channels * patch**2 * config.width
