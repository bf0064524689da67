"""Write a model as a folder that `transformers` loads: config.json, model.safetensors, preprocessor_config.json.

    model                                     becomes
    no registers, no layer scale              ViTForImageClassification, ViTModel
    distillation token                        DeiTForImageClassificationWithTeacher, DeiTModel
    layer scale, SwiGLU, mean pooling         Dinov2ForImageClassification, Dinov2Model
    registers                                 Dinov2WithRegistersForImageClassification, Dinov2WithRegistersModel

What transformers has no word for, but can compute, is spelled out: fixed and missing positions become a table, positions of prefix
tokens and biases that a model does not have become zeros, a layer scale that it does not have becomes ones, and the classifier of DINOv2,
which reads class token and mean of the patches side by side, gets zeros for the half that a head does not read. The names are those of
transformers 4; version 5 reads both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kawara.errors import ConfigError, RunFolderError
from kawara.files import new_folder
from kawara.models.interface import ImageModel
from kawara.models.vit import ViTConfig
from kawara.weights.huggingface.names import DINOV2_BLOCK, OUTSIDE, PREFIXES, SWIGLU_BLOCK, VIT_BLOCK
from kawara.weights.huggingface.processor import write_preprocessing
from kawara.weights.huggingface.reading import ACTIVATIONS, FAMILIES, hidden_width
from kawara.weights.model_file import ModelCard

_CLASSES = {
    "vit": ("ViTModel", "ViTForImageClassification"),
    "deit": ("DeiTModel", "DeiTForImageClassificationWithTeacher"),
    "dinov2": ("Dinov2Model", "Dinov2ForImageClassification"),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification"),
}
"""Model type to the class without and with a head."""


def write(destination: Path, model: ImageModel, card: ModelCard) -> list[Path]:
    """Write the folder `destination`, all of it or nothing, and return its files.

    Raises ConfigError, naming what transformers cannot express, and RunFolderError where the folder exists or cannot be written.
    """
    config = model.config
    family = _family(config)
    contents = {
        "config.json": _config(family, config, card.class_names),
        "preprocessor_config.json": write_preprocessing(card.preprocessing)[0],
    }
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    tensors = _tensors(family, config, state)
    with new_folder(destination) as folder:
        try:
            safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        except safetensors.SafetensorError as error:  # what it makes of a full disk
            raise RunFolderError(f"{destination} cannot be written.", got=error, remedy="free some disk space, or another folder") from None
        for name, values in contents.items():
            (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [destination / name for name in ("config.json", "model.safetensors", "preprocessor_config.json")]


def differences(config: Any, card: ModelCard) -> list[str]:
    """Return in what transformers, with the folder that `write` makes, will differ from kawara; one sentence each."""
    notes = write_preprocessing(card.preprocessing)[1]
    family = _family(config)
    if card.preprocessing.image_size != config.image_size and not family.startswith("dinov2"):
        height, width = card.preprocessing.image_size
        notes.append(
            f"transformers takes images of {height}×{width} with this model only if interpolate_pos_encoding=True is passed to it."
        )
    theirs = FAMILIES[family].position_resize
    if config.position != "none" and config.position_resize != theirs:
        notes.append(
            f"At other image sizes than {config.image_size[0]}×{config.image_size[1]}, transformers resizes the positions {theirs}, "
            f"kawara {config.position_resize}."
        )
    return notes


def _family(config: Any) -> str:
    """Return the model type that can hold this architecture. Raises ConfigError."""
    if not isinstance(config, ViTConfig):
        raise _inexpressible(f"a {type(config).__name__.removesuffix('Config')}", "--to kawara")
    dinov2 = config.registers > 0 or config.layer_scale is not None or config.pool == "mean" or config.mlp == "swiglu"
    for cannot, why in (
        (config.stem != "patch", f"a stem of convolutions (stem {config.stem!r})"),
        (config.pool not in ("class", "mean"), f"pool {config.pool!r}"),
        (not config.class_token, "a ViT without class token"),
        (
            config.pool == "mean" and config.final_norm != "tokens",
            "the mean of the patches before the final norm (pool 'mean', final_norm 'pooled')",
        ),
        (config.distillation_token and dinov2, "a distillation token together with registers, layer scale, SwiGLU or mean pooling"),
        (config.pool == "mean" and config.num_classes == 0, "mean pooling without a head"),
        (
            dinov2 and config.grid[0] != config.grid[1],
            "DINOv2 (layer scale, registers, SwiGLU or mean pooling) with images that are not square",
        ),
        (config.head_hidden is not None, "a hidden layer in the head"),
        (dinov2 and _mlp_ratio(config) is None, "DINOv2 with an MLP of a width that follows from no whole mlp_ratio"),
    ):
        if cannot:
            raise _inexpressible(why, "--to kawara" if config.stem != "patch" else "--to timm, or --to kawara")
    if config.distillation_token:
        return "deit"
    return "dinov2_with_registers" if config.registers else "dinov2" if dinov2 else "vit"


def _mlp_ratio(config: ViTConfig) -> int | None:
    """Return the whole number from which transformers makes the hidden width, None where there is none."""
    ratios = range(1, 2 + 2 * config.mlp_hidden // config.width)
    return next((ratio for ratio in ratios if hidden_width(config.width, ratio, config.mlp) == config.mlp_hidden), None)


def _inexpressible(what: str, remedy: str) -> ConfigError:
    return ConfigError(f"transformers has no model with {what}.", remedy=remedy)


def _config(family: str, config: ViTConfig, class_names: tuple[str, ...]) -> dict[str, Any]:
    dinov2 = family.startswith("dinov2")
    height, width = config.image_size
    values: dict[str, Any] = {
        "architectures": [_CLASSES[family][config.num_classes > 0]],
        "model_type": family,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": config.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "qkv_bias": True,
        "dtype": "float32",
    }
    if dinov2:
        layer_scale = 1.0 if config.layer_scale is None else config.layer_scale
        values |= {"mlp_ratio": _mlp_ratio(config), "layerscale_value": layer_scale, "use_swiglu_ffn": config.mlp == "swiglu"}
        # Without registers, a mask token would be made up on loading; with them, transformers always has one.
        values |= {"num_register_tokens": config.registers} if config.registers else {"use_mask_token": False}
    else:
        values["intermediate_size"] = config.mlp_hidden
    if config.num_classes:
        names = class_names or tuple(str(index) for index in range(config.num_classes))
        values["id2label"] = {str(index): name for index, name in enumerate(names)}
        values["label2id"] = {name: index for index, name in enumerate(names)}
    return values


def _tensors(family: str, config: ViTConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names of transformers 4."""
    dinov2 = family.startswith("dinov2")
    prefix = PREFIXES[family] if config.num_classes else ""
    outside = {ours: theirs for theirs, ours in OUTSIDE.items()}
    tensors = {prefix + outside[name]: tensor for name, tensor in state.items() if name in outside and name != "pos_embed"}
    tensors[prefix + outside["pos_embed"]] = _position_table(config, state.get("pos_embed"))
    if family == "dinov2_with_registers":
        tensors[prefix + "embeddings.mask_token"] = torch.zeros(1, config.width)
    for block in range(config.depth):
        for theirs, ours in (SWIGLU_BLOCK if config.mlp == "swiglu" else DINOV2_BLOCK if dinov2 else VIT_BLOCK).items():
            there = f"{prefix}encoder.layer.{block}.{theirs}"
            if ours in ("ls1", "ls2"):
                tensors[f"{there}.lambda1"] = state.get(f"blocks.{block}.{ours}.gamma", torch.ones(config.width))
                continue
            for parameter in ("weight", "bias"):
                tensors[f"{there}.{parameter}"] = _block_tensor(state, f"blocks.{block}.{ours}", parameter)
    if config.num_classes:
        head = "cls_classifier" if family == "deit" else "classifier"
        tensors[f"{head}.weight"] = _two_halves(state["head.weight"], config) if dinov2 else state["head.weight"]
        tensors[f"{head}.bias"] = state["head.bias"]
    if family == "deit" and config.num_classes:
        for parameter in ("weight", "bias"):
            tensors[f"distillation_classifier.{parameter}"] = state[f"head_dist.{parameter}"]
    # Cloned, because safetensors refuses views that share memory, such as query, key and value.
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _block_tensor(state: dict[str, Tensor], module: str, parameter: str) -> Tensor:
    """Return weight or bias of a module of a block; zeros for a bias that the model does not have."""
    block, _, part = module.rpartition(".")
    if part in ("query", "key", "value"):
        which = ("query", "key", "value").index(part)
        weight = state[f"{block}.qkv.weight"].chunk(3)[which]
        bias = state[f"{block}.qkv.bias"].chunk(3)[which] if f"{block}.qkv.bias" in state else weight.new_zeros(len(weight))
    else:
        weight = state[f"{module}.weight"]
        bias = state.get(f"{module}.bias", weight.new_zeros(len(weight)))
    return weight if parameter == "weight" else bias


def _position_table(config: ViTConfig, table: Tensor | None) -> Tensor:
    """Return (1, R + h·w, D) with an entry for class and distillation token, zero where the model gives them none."""
    height, width = config.grid
    if table is None:
        table = torch.zeros(1, height * width, config.width)
    missing = 1 + config.distillation_token - config.num_positioned_prefix
    return torch.cat([table.new_zeros(1, missing, config.width), table], dim=1)


def _two_halves(weight: Tensor, config: ViTConfig) -> Tensor:
    """Return (K, 2D): the head's weights for what it reads, zeros for the other of class token and mean."""
    zeros = torch.zeros_like(weight)
    return torch.cat([weight, zeros] if config.pool == "class" else [zeros, weight], dim=1)
