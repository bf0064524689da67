"""Read the .npz files of google-research/vision_transformer and big_vision (JAX).

    layout               blocks                                         position table                             head
    released             MultiHeadDotProductAttention_1, MlpBlock_3     Transformer/posembed_input/pos_embedding   cls, or mean
    newer, big_vision    MultiHeadDotProductAttention_0, MlpBlock_0     pos_embedding (class token: no entry)      cls, mean or MAPHead_0
    scanned big_vision   the same with a leading layer axis

`opt/target/`, `params/` and `params/img/` before the names are taken off; beside `params/` there may be the state of the optimiser, beside
`params/img/` the text tower of a pair. Hybrids have the ResNet of `layers/bit_resnet.py` before the patches.

GELU is its tanh form, LayerNorm has eps 1e-6 (Flax), the mean is over all tokens after the norm, positions are resized linearly with the
corners kept, images squashed bilinearly, values in [−1, 1].

Sources: google-research/vision_transformer `models_vit.py`, `models_resnet.py`, `checkpoint.py`; big_vision `models/vit.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from kawara import models
from kawara.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from kawara.errors import ConfigError, ModelFileError
from kawara.layers.bit_resnet import resnet_stride
from kawara.models.vit import ViTConfig
from kawara.weights.architecture import find_depth, find_grid, variant_name
from kawara.weights.foreign import Foreign, Hints, RawCheckpoint
from kawara.weights.google.names import ATTENTION, find_prefix, plain_name, without_layer_axis
from kawara.weights.google.tensors import use_attention_pooling, use_block, use_outside, use_resnet
from kawara.weights.ledger import Ledger

_DEFAULT_PX = 224


def recognises(checkpoint: RawCheckpoint) -> bool:
    """Say whether the names are those of the ViTs of google-research."""
    return any(name.endswith("embedding/kernel") for name in checkpoint.tensors) and any(
        "Transformer/encoderblock" in name and ATTENTION.search(name) for name in checkpoint.tensors
    )


def read(checkpoint: RawCheckpoint, hints: Hints) -> Foreign:
    """Understand a checkpoint. Raises ModelFileError: see `kawara.weights.foreign.Format`."""
    prefix = find_prefix(checkpoint)
    ledger, notes = Ledger(without_layer_axis(checkpoint), lambda name: plain_name(name, prefix)), list[str]()
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
    resnet: dict[str, Any] = {}
    if blocks is not None:
        resnet = {"stem": "resnet", "resnet_blocks": blocks, "resnet_width": ledger.shape("conv_root/kernel", 4)[3]}
    try:
        config = ViTConfig(
            image_size=image_size,
            channels=ledger.shape("conv_root/kernel" if blocks is not None else "embedding/kernel", 4)[2],
            num_classes=num_classes,
            patch_size=patch_size,
            width=width,
            depth=find_depth(ledger, r"encoder([0-9]+)/", checkpoint.path),
            heads=heads,
            mlp_hidden=ledger.shape("encoder0/mlp/Dense_0/kernel", 2)[1],
            activation="gelu_tanh",
            class_token=has_class_token,
            pool="map" if "MAPHead_0/probe" in ledger else "class" if has_class_token else "mean",
            head_hidden=ledger.shape("pre_logits/kernel", 2)[1] if "pre_logits/kernel" in ledger else None,
            class_position=class_position,
            position_resize="bilinear-corners",
            **resnet,
        )
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in models.build(config).state_dict().items()}
    except ConfigError as error:
        raise ModelFileError(f"{checkpoint.path} is a ViT that kawara cannot build.", got=error) from None

    use_outside(ledger, config)
    for block in range(config.depth):
        use_block(ledger, block, config)
    if config.pool == "map":
        use_attention_pooling(ledger, config)
    if blocks is not None:
        use_resnet(ledger, blocks)
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
    """Return the image size that the table is made for, and whether the class token has an entry; make a table where there is none."""
    if "positions" in ledger:
        prefix, grid = find_grid(ledger.shape("positions", 3)[1], (0, int(has_class_token)), patch_size, None, checkpoint.path)
        return (grid[0] * patch_size, grid[1] * patch_size), prefix > 0
    side = max(1, _DEFAULT_PX // patch_size)
    side_px = side * patch_size
    notes.append(f"The file has no positions: the fixed sin-cos ones of big_vision are assumed, for images of {side_px} px.")
    ledger.fill("pos_embed", big_vision_sincos((side, side), width), "fixed 2-D sin-cos positions as in big_vision")
    return (side_px, side_px), False


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
    units = {(int(match[1]), int(match[2])) for name in ledger if (match := re.match(r"block([0-9]{1,3})/unit([0-9]{1,3})/", name))}
    blocks = tuple(count for _, count in sorted(Counter(stage for stage, _ in units).items()))
    if units != {(stage, unit) for stage, count in enumerate(blocks, 1) for unit in range(1, count + 1)}:
        raise ModelFileError(f"{ledger.path} lacks blocks of its ResNet.", got=f"{len(units)} blocks", remedy="a complete copy of the file")
    return blocks


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
