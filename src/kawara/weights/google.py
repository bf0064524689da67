"""Read the .npz files of google-research/vision_transformer and big_vision (JAX).

    layout               blocks                                         position table                             head
    released             MultiHeadDotProductAttention_1, MlpBlock_3     Transformer/posembed_input/pos_embedding   cls, or mean
    newer, big_vision    MultiHeadDotProductAttention_0, MlpBlock_0     pos_embedding (class token: no entry)      cls, mean or MAPHead_0
    scanned big_vision   the same with a leading layer axis

`opt/target/`, `params/` and `params/img/` before the names are taken off; beside `params/` there may be the state of the optimiser, beside
`params/img/` the text tower of a pair. The kernels keep the heads as an axis, so nothing has to be guessed:

    query, key, value    (D, M, E)      rows of qkv          stacked, transposed
    out                  (M, E, D)      proj                 transposed
    dense                (in, out)      fc1, fc2, head       transposed
    convolutions         (k, k, C, D)   (D, C, k, k)

Hybrids have the ResNet of `layers/bit_resnet.py` before the patches. GELU is its tanh form, LayerNorm has eps 1e-6 (Flax), the mean is over all
tokens after the norm, positions are resized linearly with the corners kept, images squashed bilinearly, values in [−1, 1].

Sources: google-research/vision_transformer `models_vit.py`, `models_resnet.py`, `checkpoint.py`; big_vision `models/vit.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kawara import models
from kawara.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from kawara.errors import ConfigError, ModelFileError
from kawara.layers.bit_resnet import resnet_stride
from kawara.models.vit import ViTConfig
from kawara.weights.architecture import find_grid, variant_name
from kawara.weights.foreign import Foreign, Format, Hints, RawCheckpoint
from kawara.weights.ledger import Ledger

_ATTENTION = re.compile(r"MultiHeadDotProductAttention_\d/")
_LAYER_AXIS = re.compile(r"(.*Transformer/encoderblock)/(.+)")
_POSITIONS = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding", "pos_embedding")
_NORMS = {"LayerNorm_2/": "norm2/", "LayerNorm_1/": "norm2/", "LayerNorm_0/": "norm1/"}
_DEFAULT_PX = 224


def recognises(checkpoint: RawCheckpoint) -> bool:
    """Say whether the names are those of the ViTs of google-research."""
    return any(name.endswith("embedding/kernel") for name in checkpoint.tensors) and any(
        "Transformer/encoderblock" in name and _ATTENTION.search(name) for name in checkpoint.tensors
    )


def read(checkpoint: RawCheckpoint, hints: Hints) -> Foreign:
    """Understand a checkpoint. Raises ModelFileError: see `kawara.weights.foreign.Format`."""
    prefix = _prefix(checkpoint)
    ledger, notes = Ledger(_without_layer_axis(checkpoint), lambda name: _plain_name(name, prefix)), list[str]()
    _drop_what_is_beside(ledger, prefix, notes)
    patch, width = ledger.shape("embedding/kernel", 4)[0], ledger.shape("embedding/kernel", 4)[3]
    has_class_token = "cls" in ledger
    blocks = _resnet_blocks(ledger)
    patch_size = patch if blocks is None else patch * resnet_stride(blocks)
    image_size, class_position = _positions(ledger, checkpoint, patch_size, width, has_class_token, notes)
    num_classes = ledger.shape("head/kernel", 2)[1] if "head/kernel" in ledger else 0
    if not num_classes:
        ledger.drop([name for name in ledger if name.startswith("pre_logits/")], "it leads to a head, and the file has none")
    heads = ledger.shape("encoder0/attention/query/kernel", 3)[1]
    if hints.heads not in (None, heads):
        raise ConfigError(f"{checkpoint.path} says itself how many heads it has.", got=hints.heads, allowed=heads)
    try:
        config = ViTConfig(
            image_size=image_size,
            channels=ledger.shape("conv_root/kernel" if blocks is not None else "embedding/kernel", 4)[2],
            num_classes=num_classes,
            patch_size=patch_size,
            width=width,
            depth=1 + max(int(match[1]) for name in ledger if (match := re.match(r"encoder([0-9]+)/", name))),
            heads=heads,
            mlp_hidden=ledger.shape("encoder0/mlp/Dense_0/kernel", 2)[1],
            activation="gelu_tanh",
            class_token=has_class_token,
            pool="map" if "MAPHead_0/probe" in ledger else "class" if has_class_token else "mean",
            head_hidden=ledger.shape("pre_logits/kernel", 2)[1] if "pre_logits/kernel" in ledger else None,
            class_position=class_position,
            position_resize="bilinear-corners",
            stem="patch" if blocks is None else "resnet",
        )
        if blocks is not None:
            config = replace(config, resnet_blocks=blocks, resnet_width=ledger.shape("conv_root/kernel", 4)[3])
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in models.build(config).state_dict().items()}
    except ConfigError as error:
        raise ModelFileError(f"{checkpoint.path} is a ViT that kawara cannot build.", got=error) from None

    _use_outside(ledger, config)
    for block in range(config.depth):
        _use_block(ledger, block)
    if config.pool == "map":
        _use_attention_pooling(ledger)
    if blocks is not None:
        _use_resnet(ledger, blocks)
    ledger.close(shapes)
    return Foreign(
        format="google",
        name=variant_name(config),
        config=config,
        state=ledger.state,
        fates=ledger.fates,
        preprocessing=_preprocessing(config, hints, checkpoint.path),
        class_names=tuple(str(index) for index in range(num_classes)),
        notes=notes,
    )


def _prefix(checkpoint: RawCheckpoint) -> str:
    """Return what stands before the names of the model: "", "opt/target/", "params/" or "params/img/"."""
    ends = [name.removesuffix("embedding/kernel") for name in checkpoint.tensors if name.endswith("embedding/kernel")]
    return next((end for end in ("params/img/", "params/", "opt/target/", "img/", "") if end in ends), ends[0])


def _without_layer_axis(checkpoint: RawCheckpoint) -> RawCheckpoint:
    """Cut the tensors of a scanned model, which hold all blocks, into those of each: `encoderblock/x` to `encoderblock/x[i]`."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        if _LAYER_AXIS.fullmatch(name) and tensor.ndim:
            tensors |= {f"{name}[{index}]": part for index, part in enumerate(tensor)}
        else:
            tensors[name] = tensor
    return replace(checkpoint, tensors=tensors)


def _plain_name(name: str, prefix: str) -> str:
    """Return one name for a tensor in whatever layout; what does not begin with `prefix` comes back as it is."""
    if not name.startswith(prefix):
        return name
    plain = name.removeprefix(prefix)
    if match := re.fullmatch(r"Transformer/encoderblock/(.+)\[([0-9]+)\]", plain):
        plain = f"Transformer/encoderblock_{match[2]}/{match[1]}"
    if match := re.fullmatch(r"Transformer/encoderblock_([0-9]{1,4})/(.+)", plain):
        part = _ATTENTION.sub("attention/", match[2])
        part = part.replace("MlpBlock_3/", "mlp/").replace("MlpBlock_0/", "mlp/")
        for theirs, ours in _NORMS.items():
            part = part.replace(theirs, ours)
        return f"encoder{int(match[1])}/{part}"
    if plain in _POSITIONS:
        return "positions"
    if plain == "probe" or plain.startswith(("MlpBlock_0/", "MultiHeadDotProductAttention_0/", "LayerNorm_0/")):
        return f"MAPHead_0/{plain}"  # while ViT-G was developed, the pooling was not a module of its own
    return plain


def _drop_what_is_beside(ledger: Ledger, prefix: str, notes: list[str]) -> None:
    """Drop the state of the optimiser, and of a pair with a text tower everything but the image tower."""
    if prefix:
        ledger.drop([name for name in ledger if name.startswith(("opt/", "chrono/"))], "the state of the training run")
    if not prefix.endswith("img/"):
        return
    root = prefix.removesuffix("img/")
    text = [name for name in ledger if name.startswith(f"{root}txt/") or name in (f"{root}t", f"{root}b")]
    ledger.drop(text, "of the text tower, or of the loss between the towers; the image tower is taken over")
    heads = [name for name in ledger if name in ("head/kernel", "head/bias")]
    ledger.drop(heads, "it leads into the space that images share with texts; its outputs are no classes")
    notes.append("The file holds a pair of image and text tower: the image tower is taken over, as a backbone without classes.")


def _positions(
    ledger: Ledger, checkpoint: RawCheckpoint, patch_size: int, width: int, has_class_token: bool, notes: list[str]
) -> tuple[tuple[int, int], bool]:
    """Return the image size that the table is made for, and whether it has an entry for the class token; make a table where there is none."""
    if "positions" in ledger:
        prefix, grid = find_grid(ledger.shape("positions", 3)[1], (0, int(has_class_token)), patch_size, None, checkpoint.path)
        return (grid[0] * patch_size, grid[1] * patch_size), prefix > 0
    side = _DEFAULT_PX // patch_size
    notes.append(f"The file has no positions: fixed sin-cos ones for {side * patch_size} px are assumed, which is what big_vision trains without a table.")
    ledger.fill("pos_embed", big_vision_sincos((side, side), width), "fixed 2-D sin-cos positions as in big_vision")
    return (side * patch_size,) * 2, False


def big_vision_sincos(grid: tuple[int, int], width: int) -> Tensor:
    """Return the fixed table (1, h·w, D) of big_vision and MoCo v3: frequencies 10000^{−k/(D/4 − 1)}, where MAE divides by D/4."""
    if width % 4 or width < 8:
        raise ModelFileError("2-D sin-cos positions need a width that is a multiple of 4.", got=width)
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4 - 1))
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    x, y = column.reshape(-1, 1) * frequencies, row.reshape(-1, 1) * frequencies
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float().unsqueeze(0)


def _resnet_blocks(ledger: Ledger) -> tuple[int, ...] | None:
    """Return how many units each stage of a hybrid has; None for a model that is none. `R` alone has a root without stages."""
    if "conv_root/kernel" not in ledger:
        return None
    units = {(int(match[1]), int(match[2])) for name in ledger if (match := re.match(r"block([0-9]+)/unit([0-9]+)/", name))}
    num_stages = max((stage for stage, _ in units), default=0)
    return tuple(max((unit for found, unit in units if found == stage), default=0) for stage in range(1, num_stages + 1))


def _use_outside(ledger: Ledger, config: ViTConfig) -> None:
    ledger.use("patch_embed.proj.weight", "embedding/kernel", how="axes turned", join=_convolution)
    ledger.use("patch_embed.proj.bias", "embedding/bias")
    if config.class_token:
        ledger.use("cls_token", "cls")
    if "positions" in ledger:
        ledger.use("pos_embed", "positions")
    _use_norm(ledger, "norm", "Transformer/encoder_norm")
    for name in ("pre_logits", "head"):
        if f"{name}/kernel" in ledger:
            _use_dense(ledger, name, name)


def _use_block(ledger: Ledger, block: int) -> None:
    target, source = f"blocks.{block}", f"encoder{block}"
    parts = [f"{source}/attention/{part}" for part in ("query", "key", "value")]
    ledger.use(f"{target}.attn.qkv.weight", *(f"{part}/kernel" for part in parts), how="query, key and value stacked", join=_stacked)
    ledger.use(f"{target}.attn.qkv.bias", *(f"{part}/bias" for part in parts), how="query, key and value stacked", join=_stacked_biases)
    _use_output(ledger, f"{target}.attn.proj", f"{source}/attention/out")
    for name in ("norm1", "norm2"):
        _use_norm(ledger, f"{target}.{name}", f"{source}/{name}")
    for layer in range(2):
        _use_dense(ledger, f"{target}.mlp.fc{layer + 1}", f"{source}/mlp/Dense_{layer}")


def _use_attention_pooling(ledger: Ledger) -> None:
    attention = "MAPHead_0/MultiHeadDotProductAttention_0"
    ledger.use("attn_pool.latent", "MAPHead_0/probe")
    ledger.use("attn_pool.attn.query.weight", f"{attention}/query/kernel", how="transposed", join=_stacked)
    ledger.use("attn_pool.attn.query.bias", f"{attention}/query/bias", how="flattened", join=_stacked_biases)
    pair = [f"{attention}/{part}" for part in ("key", "value")]
    ledger.use("attn_pool.attn.key_value.weight", *(f"{part}/kernel" for part in pair), how="key and value stacked", join=_stacked)
    ledger.use("attn_pool.attn.key_value.bias", *(f"{part}/bias" for part in pair), how="key and value stacked", join=_stacked_biases)
    _use_output(ledger, "attn_pool.attn.proj", f"{attention}/out")
    _use_norm(ledger, "attn_pool.norm", "MAPHead_0/LayerNorm_0")
    for layer in range(2):
        _use_dense(ledger, f"attn_pool.mlp.fc{layer + 1}", f"MAPHead_0/MlpBlock_0/Dense_{layer}")


def _use_resnet(ledger: Ledger, blocks: Sequence[int]) -> None:
    target = "patch_embed.backbone"
    ledger.use(f"{target}.conv.weight", "conv_root/kernel", how="axes turned", join=_convolution)
    _use_norm(ledger, f"{target}.norm", "gn_root")
    for stage, num_units in enumerate(blocks):
        for unit in range(num_units):
            ours, theirs = f"{target}.stages.{stage}.{unit}", f"block{stage + 1}/unit{unit + 1}"
            for number in (1, 2, 3):
                ledger.use(f"{ours}.conv{number}.weight", f"{theirs}/conv{number}/kernel", how="axes turned", join=_convolution)
                _use_norm(ledger, f"{ours}.norm{number}", f"{theirs}/gn{number}")
            if f"{theirs}/conv_proj/kernel" in ledger:
                ledger.use(f"{ours}.shortcut.0.weight", f"{theirs}/conv_proj/kernel", how="axes turned", join=_convolution)
                _use_norm(ledger, f"{ours}.shortcut.1", f"{theirs}/gn_proj")


def _use_dense(ledger: Ledger, target: str, source: str) -> None:
    ledger.use(f"{target}.weight", f"{source}/kernel", how="transposed", join=lambda parts: parts[0].T)
    ledger.use(f"{target}.bias", f"{source}/bias")


def _use_norm(ledger: Ledger, target: str, source: str) -> None:
    ledger.use(f"{target}.weight", f"{source}/scale", join=lambda parts: parts[0].flatten())  # (1, 1, 1, C) in old hybrids
    ledger.use(f"{target}.bias", f"{source}/bias", join=lambda parts: parts[0].flatten())


def _use_output(ledger: Ledger, target: str, source: str) -> None:
    ledger.use(f"{target}.weight", f"{source}/kernel", how="transposed", join=lambda parts: parts[0].flatten(0, 1).T)
    ledger.use(f"{target}.bias", f"{source}/bias")


def _stacked(kernels: Sequence[Tensor]) -> Tensor:
    """Return (n·D, D) of n kernels (D, M, E): the rows of each, head after head."""
    return torch.cat([kernel.flatten(1).T for kernel in kernels])


def _stacked_biases(biases: Sequence[Tensor]) -> Tensor:
    return torch.cat([bias.flatten() for bias in biases])


def _convolution(kernels: Sequence[Tensor]) -> Tensor:
    """Return (out, in, height, width) of a kernel (height, width, in, out)."""
    return kernels[0].permute(3, 2, 0, 1)


def _preprocessing(config: Any, hints: Hints, path: str) -> Preprocessing:
    if config.channels not in (1, 3):
        raise ModelFileError(f"{path} takes images of {config.channels} channels.", allowed="1 (grey) or 3 (RGB)")
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if hints.normalisation == "imagenet" else (HALF, HALF)
    return Preprocessing(
        image_size=config.image_size,
        color="rgb" if config.channels == 3 else "grey",
        resize="squash",
        crop_fraction=1.0,
        interpolation="bilinear",
        mean=mean if config.channels == 3 else (sum(mean) / 3,),
        std=std if config.channels == 3 else (sum(std) / 3,),
    )


FORMAT = Format("google", recognises, read)
