"""Read a checkpoint of Hugging Face transformers: ViT, DeiT, DINOv2 (with registers), the encoder of ViT-MAE, ViT-MSN.

config.json is needed: neither the number of heads nor the eps of LayerNorm can be seen in the tensors. What it says is checked against
them.

    family                    eps where config.json is silent    positions at other sizes
    vit, deit, vit_mae        1e-12                              bicubic
    vit_msn                   1e-6                               bicubic
    dinov2                    1e-6                               bicubic (its authors' own code: bicubic with an offset of 0.1)
    dinov2_with_registers     1e-6                               bicubic, antialiased

A DeiT with one classifier reads the class token alone: its distillation token, position added, does what a register does, and becomes one.
The classifier of DINOv2 reads the class token and the mean of the patches side by side; kawara's heads read one of the two, so it is taken
over where its other half is zero (which is how kawara writes its own heads) and dropped otherwise.

Sources: transformers 5.23, `configuration_*.py` and `modeling_*.py` of each family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch

from kawara import models
from kawara.errors import ConfigError, ModelFileError
from kawara.layers.feedforward import Activation, Mlp
from kawara.layers.position import PositionResize
from kawara.models.vit import Pool, ViTConfig
from kawara.weights.architecture import variant_name
from kawara.weights.foreign import Foreign, Hints, RawCheckpoint
from kawara.weights.huggingface.names import kawara_name
from kawara.weights.huggingface.processor import read_preprocessing
from kawara.weights.ledger import Ledger


@dataclass(frozen=True)
class _Family:
    norm_eps: float
    position_resize: PositionResize


FAMILIES = {
    "vit": _Family(1e-12, "bicubic"),
    "deit": _Family(1e-12, "bicubic"),
    "vit_mae": _Family(1e-12, "bicubic"),
    "vit_msn": _Family(1e-6, "bicubic"),
    "dinov2": _Family(1e-6, "bicubic"),
    "dinov2_with_registers": _Family(1e-6, "bicubic-antialias"),
}
"""By `model_type`."""

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
_LARGEST = 1e9
"""No number of a configuration is near it; JSON allows numbers that no computer can hold."""
_PATCHES = "embeddings.patch_embeddings.projection.weight"


def recognises(checkpoint: RawCheckpoint) -> bool:
    """Say whether the names are those of a vision transformer of transformers, of a family that kawara has or not."""
    return any(name == _PATCHES or name.endswith("." + _PATCHES) for name in checkpoint.tensors)


def read(checkpoint: RawCheckpoint, hints: Hints) -> Foreign:
    """Understand a checkpoint. Raises ModelFileError: see `kawara.weights.foreign.Format`."""
    said = _Configuration(checkpoint)
    family = FAMILIES[said.family]
    ledger = Ledger(checkpoint, kawara_name)
    notes: list[str] = []

    width, channels, patch_size = _sizes(ledger)
    said.agrees("hidden_size", width)
    said.agrees("num_channels", channels)
    said.agrees("patch_size", patch_size)
    depth = 1 + max((int(match[1]) for name in ledger if (match := re.match(r"blocks\.([0-9]+)\.", name))), default=-1)
    said.agrees("num_hidden_layers", depth)
    _stack_gates(ledger, depth, width)
    mlp_hidden = ledger.shape("blocks.0.mlp.fc2.weight", 2)[1]
    fc1 = ledger.state.get("blocks.0.mlp.fc1.weight")
    rows = ledger.shape("blocks.0.mlp.fc1.weight", 2)[0] if fc1 is None else len(fc1)
    mlp: Mlp = "swiglu" if rows == 2 * mlp_hidden else "dense"
    said.agrees("intermediate_size", mlp_hidden)
    if said.flag("use_swiglu_ffn", mlp == "swiglu") != (mlp == "swiglu"):
        raise said.contradiction("use_swiglu_ffn", f"a {mlp} MLP")
    if said.has("mlp_ratio") and hidden_width(width, said.number("mlp_ratio", 4), mlp) != mlp_hidden:
        raise said.contradiction("mlp_ratio", f"an MLP of {mlp_hidden} on a width of {width}")

    distilled = "dist_token" in ledger
    image_size = _image_size(ledger, said, patch_size, num_prefix=1 + distilled)
    heads = _heads(said, hints, width, notes)
    pool, num_classes = _read_head(ledger, said, width, notes)
    registers = ledger.shape("reg_token", 3)[1] if "reg_token" in ledger else 0
    said.agrees("num_register_tokens", registers, default=registers)
    has_query_bias = "blocks.0.attn.query.bias" in ledger
    if said.flag("qkv_bias", True) != has_query_bias:
        raise said.contradiction("qkv_bias", "query biases" if has_query_bias else "no query biases")
    if distilled and num_classes and "head_dist.weight" not in ledger:
        _distillation_token_becomes_register(ledger, width)
        distilled, registers = False, 1
    try:
        config = ViTConfig(
            image_size=image_size,
            channels=channels,
            num_classes=num_classes,
            patch_size=patch_size,
            width=width,
            depth=depth,
            heads=heads,
            mlp_hidden=mlp_hidden,
            mlp=mlp,
            activation=said.activation() if mlp == "dense" else "gelu",
            norm_eps=said.number("layer_norm_eps", family.norm_eps),
            distillation_token=distilled,
            registers=registers,
            pool=pool,
            position_resize=family.position_resize,
            layer_scale=said.number("layerscale_value", 1.0) if "blocks.0.ls1.gamma" in ledger else None,
            dropout=said.number("hidden_dropout_prob", 0.0),
            attention_dropout=said.number("attention_probs_dropout_prob", 0.0),
        )
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in models.build(config).state_dict().items()}
    except ConfigError as error:
        raise ModelFileError(f"The config.json of {checkpoint.path} describes a model that kawara cannot build.", got=error.what) from None

    for block in range(depth):
        _stack_query_key_value(ledger, f"blocks.{block}.attn", "weight", (width, width))
        if has_query_bias:
            _stack_query_key_value(ledger, f"blocks.{block}.attn", "bias", (width,))
        else:
            ledger.fill(f"blocks.{block}.attn.qkv.bias", torch.zeros(3 * width), "zero, because qkv_bias is false")
    _drop_what_only_training_needs(ledger)
    ledger.close(shapes)
    preprocessing, assumed = read_preprocessing(
        checkpoint.preprocessor, said.family, image_size, channels, hints.normalisation, checkpoint.path
    )
    return Foreign(
        format="huggingface",
        name=said.name(config),
        config=config,
        state=ledger.state,
        fates=ledger.fates,
        preprocessing=preprocessing,
        class_names=said.class_names(num_classes),
        notes=notes + assumed,
    )


def hidden_width(width: int, mlp_ratio: float, mlp: Mlp) -> int:
    """Return the hidden width of DINOv2; SwiGLU has two thirds of it, rounded up to a multiple of 8."""
    hidden = int(width * mlp_ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if mlp == "swiglu" else hidden


def _stack_gates(ledger: Ledger, depth: int, width: int) -> None:
    """Stack `mlp.gate` and `mlp.up`, which transformers 5 keeps apart."""
    for block in range(depth):
        for parameter in ("weight", "bias"):
            names = [f"blocks.{block}.mlp.{part}.{parameter}" for part in ("gate", "up")]
            if names[0] in ledger:
                rows = ledger.tensor(names[0]).shape[:1]
                _check_shapes(ledger, names, (*rows, width) if parameter == "weight" else tuple(rows))
                how = "gate and what it lets through stacked"
                ledger.use(f"blocks.{block}.mlp.fc1.{parameter}", *names, how=how, join=lambda parts: torch.cat(list(parts)))


def _sizes(ledger: Ledger) -> tuple[int, int, int]:
    """Return width, channels and patch size from the patch projection (D, C, P, P)."""
    shape = ledger.shape("patch_embed.proj.weight", 4)
    if shape[2] != shape[3]:
        raise ModelFileError(f"The patches of {ledger.path} are not square.", got=f"{shape[2]}×{shape[3]} px")
    if shape[1] not in (1, 3):
        raise ModelFileError(f"The images of {ledger.path} have {shape[1]} channels.", allowed="1 (grey) or 3 (RGB)")
    return shape[0], shape[1], shape[2]


def _image_size(ledger: Ledger, said: _Configuration, patch_size: int, num_prefix: int) -> tuple[int, int]:
    """Return (H, W) of config.json, checked against the position table."""
    size = said.size("image_size")
    entries = ledger.shape("pos_embed", 3)[1]
    if size is None:
        side = isqrt(max(0, entries - num_prefix)) * patch_size
        size = side, side
    if num_prefix + (size[0] // patch_size) * (size[1] // patch_size) != entries:
        raise said.contradiction("image_size", f"{entries} positions for patches of {patch_size} px")
    return size


def _heads(said: _Configuration, hints: Hints, width: int, notes: list[str]) -> int:
    heads = said.whole("num_attention_heads", hints.heads or 12)
    if not said.has("num_attention_heads") and hints.heads is None:
        notes.append(
            f"config.json does not say the number of heads: {heads}, as transformers assumes. kawara convert --heads N changes it."
        )
    if hints.heads not in (None, heads):
        raise ModelFileError(
            f"The config.json of {said.path} says how many heads the model has.",
            got=f"--heads {hints.heads}",
            allowed=heads,
            remedy="leave out --heads",
        )
    if heads < 1 or width % heads:
        raise said.contradiction("num_attention_heads", f"a width of {width}")
    return heads


def _read_head(ledger: Ledger, said: _Configuration, width: int, notes: list[str]) -> tuple[Pool, int]:
    """Return pool and number of classes; take the classifier of DINOv2 apart."""
    if "head.weight" not in ledger:
        return "class", 0
    num_classes, inputs = ledger.shape("head.weight", 2)
    if inputs != 2 * width:
        return "class", num_classes
    weight = ledger.tensor("head.weight")
    of_class, of_mean = weight[:, :width], weight[:, width:]
    if of_class.any() and of_mean.any():
        why = "it reads the class token and the mean of the patches side by side, and kawara's heads read one of the two"
        ledger.drop([name for name in ledger if name.startswith("head.")], why)
        notes.append("The classifier is left out, so this is a backbone without classes: train a head of your own on it.")
        return "class", 0
    pool: Pool = "mean" if of_mean.any() else "class"
    half = of_mean if pool == "mean" else of_class
    ledger.use(
        "head.weight",
        how=f"the half for {'the mean of the patches' if pool == 'mean' else 'the class token'}; the other is zero",
        join=lambda _: half.float(),
    )
    return pool, num_classes


def _stack_query_key_value(ledger: Ledger, attention: str, parameter: str, shape: tuple[int, ...]) -> None:
    names = [f"{attention}.{part}.{parameter}" for part in ("query", "key", "value")]
    _check_shapes(ledger, names, shape)
    ledger.use(f"{attention}.qkv.{parameter}", *names, how="query, key and value stacked", join=lambda parts: torch.cat(list(parts)))


def _check_shapes(ledger: Ledger, names: list[str], shape: tuple[int, ...]) -> None:
    """Raise before tensors are joined that cannot be."""
    for name in names:
        if (found := ledger.shape(name, len(shape))) != shape:
            raise ModelFileError(f"The shapes in {ledger.path} do not go together.", got=f"{found}", allowed=f"{shape} for {name}")


def _distillation_token_becomes_register(ledger: Ledger, width: int) -> None:
    _check_shapes(ledger, ["dist_token"], (1, 1, width))
    _check_shapes(ledger, ["pos_embed"], (1, ledger.shape("pos_embed", 3)[1], width))
    position = ledger.tensor("pos_embed")[:, 1:2].float()
    ledger.use(
        "reg_token",
        "dist_token",
        how="its position added, as a register: the only classifier reads the class token",
        join=lambda parts: parts[0] + position,
    )
    ledger.use(
        "pos_embed",
        how="without the entry of the distillation token, which was added to it",
        join=lambda parts: torch.cat([parts[0][:, :1], parts[0][:, 2:]], dim=1),
    )


def _drop_what_only_training_needs(ledger: Ledger) -> None:
    ledger.drop([name for name in ledger if name == "embeddings.mask_token"], "it stands for masked patches in pre-training")
    ledger.drop([name for name in ledger if name.startswith("decoder.")], "the decoder of masked pre-training; the encoder is taken over")
    ledger.drop(
        [name for name in ledger if name.startswith("pooler.")],
        "the tanh layer behind the class token; no classifier of this family uses it",
    )


class _Configuration:
    """config.json, read with care: it comes from outside."""

    def __init__(self, checkpoint: RawCheckpoint):
        self.path = checkpoint.path
        self.values: Mapping[str, Any] = checkpoint.config
        if not self.values:
            raise ModelFileError(
                f"{self.path} has no config.json, and the heads and the eps of a transformers model cannot be seen in its tensors.",
                remedy="put the config.json of the checkpoint into its folder",
            )
        self.family = str(self.values.get("model_type"))
        if self.family not in FAMILIES:
            raise ModelFileError(
                f"{self.path} is a transformers model of a family that kawara does not have.",
                got=f"model_type {self.values.get('model_type')}",
                allowed=", ".join(FAMILIES),
            )

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def whole(self, name: str, default: int) -> int:
        value = self.values[name] if self.has(name) else default
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._unclear(name, "a whole number")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.values[name] if self.has(name) else default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
            raise self._unclear(name, f"a number from 0 to {_LARGEST:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values[name] if self.has(name) else default
        if not isinstance(value, bool):
            raise self._unclear(name, "true or false")
        return value

    def size(self, name: str) -> tuple[int, int] | None:
        """Read one number or [height, width]; None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        pair = value if isinstance(value, list) else [value, value]
        if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in pair):
            raise self._unclear(name, "a number or [height, width]")
        return pair[0], pair[1]

    def activation(self) -> Activation:
        name = str(self.values.get("hidden_act", "gelu"))
        if name not in ACTIVATIONS:
            raise ModelFileError(
                f"{self.path} uses an activation that kawara does not have.", got=f"hidden_act {name}", allowed=", ".join(ACTIVATIONS)
            )
        return ACTIVATIONS[name]

    def agrees(self, name: str, found: int, default: int | None = None) -> None:
        """Raise unless config.json is silent or says what the tensors say."""
        said = self.size(name) if self.has(name) else default
        if said is not None and said not in (found, (found, found)):
            raise self.contradiction(name, f"{found}")

    def contradiction(self, name: str, found: str) -> ModelFileError:
        return ModelFileError(
            f"The config.json of {self.path} contradicts its tensors.",
            got=f"{name} {self.values.get(name, '(by default)')}, but the tensors have {found}",
            remedy="the config.json that belongs to these weights",
        )

    def name(self, config: ViTConfig) -> str:
        """Return the last part of the name that the model had on the hub, else one made of its family and the size that kawara knows."""
        name = re.sub(r"[^\w.-]", "", str(self.values.get("_name_or_path") or "").rstrip("/").rpartition("/")[2]).strip(".")
        size = variant_name(config)
        return name or (self.family if size == "vit" else f"{self.family}_{size.removeprefix('vit_')}")

    def class_names(self, num_classes: int) -> tuple[str, ...]:
        """Return one name for each class: those of id2label, else the numbers."""
        names = self.values.get("id2label")
        numbers = tuple(str(index) for index in range(num_classes))
        if not num_classes or not isinstance(names, Mapping):
            return numbers
        if set(names) != set(numbers):
            raise self.contradiction("id2label", f"{num_classes} classes")
        named = tuple(str(names[number]) for number in numbers)
        return numbers if named == tuple(f"LABEL_{number}" for number in numbers) else named

    def _unclear(self, name: str, allowed: str) -> ModelFileError:
        return ModelFileError(
            f"The config.json of {self.path} has a {name} that makes no sense.", got=repr(self.values.get(name))[:80], allowed=allowed
        )
