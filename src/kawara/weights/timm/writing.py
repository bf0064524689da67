"""Write a model in timm's layout: the weights, and config.json as timm's hub pages have it.

`timm.create_model("local-dir:FOLDER", pretrained=True)` reads such a folder, and `VisionTransformer(**model_args)` of timm takes the state
dict (with a distillation token `VisionTransformerDistilled`). Seen with timm 1.0.31: the same logits to 1e-6.

What timm has no words for is an error: convolutional stems and hybrids, a hidden layer in the head, another eps than 1e-6, a distillation
token together with what DeiT's does not have. Fixed sin-cos positions become a table that timm would train. How positions are resized is
written under a name of kawara's own; timm always takes bicubic-antialias.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch

from kawara.errors import ConfigError
from kawara.files import replacing, write_json
from kawara.models.convnet import ConvNetConfig
from kawara.models.interface import ImageModel
from kawara.models.vit import ViTConfig
from kawara.weights.model_file import ModelCard
from kawara.weights.timm.names import timm_name

NORM_EPS = 1e-6

_POOLS = {"class": "token", "mean": "avg", "map": "map"}
_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
_USUAL_LAYER_SCALE = 1e-5
_SWIGLU = "vit_giant_patch14_dinov2"
"""The only kind of model of timm whose MLP is SwiGLU: `model_args` cannot ask for one."""


def write(destination: Path, model: ImageModel, card: ModelCard) -> list[Path]:
    """Write weights and sidecar and return their paths: `x.safetensors` and `x.json`, or a folder with model.safetensors and config.json.

    Raises ConfigError, naming what timm cannot express, and RunFolderError where nothing can be written.
    """
    config = model.config
    sidecar = _sidecar(config, card)
    names = {name: timm_name(name, norm_after_pooling=config.final_norm == "pooled") for name in model.state_dict()}
    tensors = {names[name]: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    destination = Path(destination)
    if destination.suffix == ".safetensors":
        weights, described = destination, destination.with_suffix(".json")
    else:
        destination.mkdir(parents=True, exist_ok=True)
        weights, described = destination / "model.safetensors", destination / "config.json"
    with replacing(weights) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(described, sidecar)
    return [weights, described]


def _sidecar(config: Any, card: ModelCard) -> dict[str, Any]:
    if isinstance(config, ConvNetConfig):
        raise ConfigError(
            "A CNN of kawara has timm's names already, so that nothing is left to convert.",
            remedy='timm.create_model(NAME, checkpoint_path="model.safetensors"), with the number of classes',
        )
    if not isinstance(config, ViTConfig):
        raise _inexpressible(f"{type(config).__name__} in its ViT layout")
    for cannot, what in (
        (config.stem != "patch", f"a stem {config.stem!r} in this layout"),
        (config.head_hidden is not None, "a hidden layer in the head"),
        (config.norm_eps != NORM_EPS, f"LayerNorm with an eps of {config.norm_eps:g} instead of {NORM_EPS:g}"),
        (config.pool == "map" and config.mlp == "swiglu", "attention pooling together with SwiGLU"),
        (
            config.distillation_token
            and (config.registers or config.pool != "class" or config.final_norm != "tokens" or not config.num_positioned_prefix),
            "a distillation token together with registers, mean pooling or positions for the patches alone",
        ),
    ):
        if cannot:
            raise _inexpressible(what)
    prepared = card.preprocessing
    return {
        "architecture": _architecture(config),
        "num_classes": config.num_classes,
        "num_features": config.width,
        "global_pool": _POOLS[config.pool],
        "model_args": _arguments(config),
        "pretrained_cfg": {
            "input_size": [config.channels, *prepared.image_size],
            "fixed_input_size": True,
            "interpolation": prepared.interpolation,
            "crop_pct": prepared.crop_fraction,
            "crop_mode": "squash" if prepared.resize == "squash" else "center",
            "mean": list(prepared.mean),
            "std": list(prepared.std),
            "num_classes": config.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if config.distillation_token else "head",
        },
        "label_names": list(card.class_names),
        "kawara": {"name": card.name, "position_resize": config.position_resize},
    }


def _architecture(config: ViTConfig) -> str:
    """Return a name that timm knows; `model_args` say everything else."""
    if config.mlp == "swiglu":
        return _SWIGLU
    size = _SIZES.get(config.width, "base")
    if config.distillation_token:
        return f"deit_{'base' if size == 'large' else size}_distilled_patch16_224"
    return f"vit_{size}_patch16_224"


def _arguments(config: ViTConfig) -> dict[str, Any]:
    """Return the arguments of timm's VisionTransformer."""
    arguments = {
        "img_size": list(config.image_size),
        "patch_size": config.patch_size,
        "in_chans": config.channels,
        "num_classes": config.num_classes,
        "global_pool": _POOLS[config.pool],
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": _mlp_ratio(config.width, config.mlp_hidden * (2 if config.mlp == "swiglu" else 1)),
        "qkv_bias": config.bias,
        "proj_bias": config.bias,
        "init_values": None if config.layer_scale is None else config.layer_scale or _USUAL_LAYER_SCALE,  # timm takes 0 for none
        "class_token": config.class_token,
        "pos_embed": "none" if config.position == "none" else "learn",
        "no_embed_class": config.num_positioned_prefix == 0,
        "reg_tokens": config.registers,
        "fc_norm": config.final_norm == "pooled",
    }
    if config.mlp == "dense":
        arguments["act_layer"] = config.activation
    return arguments


def _mlp_ratio(width: int, hidden: int) -> float:
    """Return a number whose product with the width, cut to a whole number as timm does, is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _inexpressible(what: str) -> ConfigError:
    return ConfigError(f"timm has no ViT with {what}.", remedy="a kawara model file, which holds every model of kawara")
