"""`kawara models` and `kawara doctor`: what there is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from kawara import models
from kawara.analysis.cost import count_macs, count_parameters, vit_macs
from kawara.config import to_dict
from kawara.models import MODELS, ViTConfig
from kawara.runtime import choose_device, environment, has_fast_bfloat16


def list_models() -> list[dict[str, Any]]:
    """Return name, parameters, MACs, image size and description of every model, with a head of 1,000 classes."""
    return [_row(name) for name in MODELS]


def describe_model(name: str) -> dict[str, Any]:
    """Return what is known of one model. Raises UnknownNameError with near names."""
    return _row(name) | {"source": MODELS[name].source, "config": to_dict(MODELS[name].config)}


def diagnose() -> dict[str, Any]:
    """Return what kawara found on this machine, with advice."""
    device = choose_device()
    record = environment()
    free = shutil.disk_usage(Path.cwd()).free
    advice = []
    if record["packages"]["simplejpeg"] is None:
        advice.append("pip install 'kawara[fast]' reads JPEG about twice as fast")
    if device.type == "cpu":
        advice.append("no GPU was found: --minutes N makes the best of the time you give it")
    if free < 5 * 2**30:
        advice.append("less than 5 GB of disk are free here")
    return {
        **record,
        "device": str(device),
        "mixed_precision": "bfloat16" if has_fast_bfloat16(device) else "float16" if device.type == "cuda" else "float32 is fastest here",
        "disk_free_gb": round(free / 2**30, 1),
        "advice": advice,
    }


def _row(name: str) -> dict[str, Any]:
    config = MODELS[name].config
    with torch.device("meta"):
        model = models.build(config)
    return {
        "name": name,
        "parameters": count_parameters(model),
        "macs": vit_macs(config) if isinstance(config, ViTConfig) else count_macs(model),  # the same; the formula is quicker
        "image_size": list(config.image_size),
        "description": MODELS[name].description,
    }
