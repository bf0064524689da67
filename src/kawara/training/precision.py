"""In which precision a run multiplies: what `precision=auto` means for a model on a device.

On a GPU it is that of everything else. A CPU with instructions for bfloat16 (AVX-512 BF16, AMX) trains in it where that pays; what it
answers and is judged by stays float32. By a rule and not by a measurement, so that the same command gives the same weights: forward,
backward and AdamW took, on one core of an AMD EPYC (Zen 4) with torch 2.13, float32 as multiples of bfloat16

    ViT   width 64: 0.9      96: 1.05      128: 0.8 (16 tokens) to 1.2 (65)      192: 1.2 to 1.5      256: 1.4 to 1.5      384: 1.6
    CNN   ResNet 1.6 to 1.8      RegNetY 1.3 to 1.6      ConvNeXt 1.1 to 1.3
"""

from __future__ import annotations

import torch
from torch import nn

from kawara.models.convnet import ConvNet
from kawara.models.vit import VisionTransformer
from kawara.runtime import Precision, autocast_dtype, has_fast_bfloat16

NARROWEST_VIT = 192


def training_dtype(precision: Precision, device: torch.device, model: nn.Module) -> torch.dtype | None:
    """Return the autocast type to train `model` in, None for plain float32. Raises ConfigError where it would crawl."""
    if precision == "auto" and device.type == "cpu" and has_fast_bfloat16(device) and _gains_from_bfloat16(model):
        return torch.bfloat16
    return autocast_dtype(precision, device)


def _gains_from_bfloat16(model: nn.Module) -> bool:
    return isinstance(model, ConvNet) or (isinstance(model, VisionTransformer) and model.config.width >= NARROWEST_VIT)
