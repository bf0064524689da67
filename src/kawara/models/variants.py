"""The models that have a name, each a row: configuration, one line of description, source.

Sizes of the paper: Ti, S from google-research/vision_transformer and DeiT (arXiv 2012.12877); B, L, H from ViT (arXiv 2010.11929, table 1);
g, G from Scaling Vision Transformers (arXiv 2106.04560). `vit_small_16` is ViT-S/16 for 224 px; `vit_small_conv_16` has the
same blocks behind a convolutional stem of total stride 16.

Small images (28–64 px): the sizes between femto and milli are kawara's own and span 0.16 to 5.6 M parameters, with heads 32 or 64 wide.
`vit_lite7` is ViT-Lite-7 of Escaping the Big Data Paradigm (arXiv 2104.05704), but mean-pooled. All of them
average the patches and have no class token.

The rows of the CNNs stand at the end of their own files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kawara.models import convnext, regnet, resnet
from kawara.models.interface import Variant
from kawara.models.vit import ViTConfig
from kawara.registry import Registry


@dataclass(frozen=True)
class _Size:
    letters: str
    width: int
    depth: int
    heads: int
    mlp_hidden: int
    patches: tuple[int, ...]
    conv_strides: tuple[int, ...]
    source: str


_VIT = "arXiv 2010.11929, table 1"
_TI_S = "arXiv 2012.12877, table 1"
_SCALING = "arXiv 2106.04560; big_vision vit.py"

_PAPER_SIZES = {
    # name             width depth heads  mlp   patches            conv strides
    "tiny": _Size("Ti", 192, 12, 3, 768, (8, 14, 16, 32), (8, 16, 32), _TI_S),
    "small": _Size("S", 384, 12, 6, 1536, (8, 14, 16, 32), (8, 16, 32), _TI_S),
    "base": _Size("B", 768, 12, 12, 3072, (8, 14, 16, 32), (8, 16, 32), _VIT),
    "large": _Size("L", 1024, 24, 16, 4096, (8, 14, 16, 32), (8, 16, 32), _VIT),
    "huge": _Size("H", 1280, 32, 16, 5120, (14, 16), (16,), _VIT),
    "giant": _Size("g", 1408, 40, 16, 6144, (14, 16), (16,), _SCALING),
    "gigantic": _Size("G", 1664, 48, 16, 8192, (14, 16), (16,), _SCALING),
}

_OURS = "kawara"
_SMALL_IMAGE_SIZES = {
    # name             width depth heads  mlp   patches       conv strides
    "femto": _Size("femto", 64, 3, 2, 256, (2, 4, 7, 8), (2, 4, 8, 16), _OURS),
    "pico": _Size("pico", 96, 4, 3, 384, (2, 4, 7, 8), (2, 4, 8, 16), _OURS),
    "nano": _Size("nano", 128, 6, 4, 512, (2, 4, 7, 8), (2, 4, 8, 16), _OURS),
    "micro": _Size("micro", 192, 6, 3, 768, (2, 4, 7, 8), (2, 4, 8, 16), _OURS),
    "mini": _Size("mini", 192, 9, 3, 768, (2, 4, 7, 8), (2, 4, 8, 16), _OURS),
    "lite7": _Size("Lite-7", 256, 7, 4, 512, (2, 4, 7, 8), (2, 4, 8, 16), "arXiv 2104.05704"),
    "milli": _Size("milli", 256, 7, 4, 1024, (2, 4, 7, 8), (2, 4, 8, 16), _OURS),
}

_HYBRID = "arXiv 2010.11929, §3.1; google-research/vision_transformer models.py"
_HYBRIDS = (
    # size   ResNet  blocks        total stride
    ("small", "r26", (2, 2, 2, 2), 32),
    ("base", "r26", (2, 2, 2, 2), 32),
    ("base", "r50", (3, 4, 9), 16),
    ("large", "r50", (3, 4, 6, 3), 32),
)
"""The paper's hybrids that were released: a BiT ResNet makes the feature map whose cells are the tokens."""

MODELS: Registry[Variant] = Registry("model")


def _add(name: str, config: ViTConfig, size: _Size, where: str) -> None:
    stem = f"patch {config.patch_size}" if config.stem == "patch" else f"convolutional stem of stride {config.patch_size}"
    description = f"ViT-{size.letters}, {stem}, width {size.width}, {size.depth} blocks, {size.heads} heads, {where}"
    MODELS.add(name, Variant(name, config, description, size.source))


def _add_size(name: str, size: _Size, where: str, common: ViTConfig) -> None:
    common = replace(common, width=size.width, depth=size.depth, heads=size.heads, mlp_hidden=size.mlp_hidden)
    for patch in size.patches:
        # 28 px is what patches of 7 are for.
        image_size = (28, 28) if patch == 7 else common.image_size
        _add(f"vit_{name}_{patch}", replace(common, patch_size=patch, image_size=image_size), size, where)
    for stride in size.conv_strides:
        # Small models see photos reduced to 128 px.
        image_size = (128, 128) if common.image_size == (32, 32) and stride == 16 else common.image_size
        _add(f"vit_{name}_conv_{stride}", replace(common, patch_size=stride, stem="conv", image_size=image_size), size, where)


_SMALL_IMAGES = ViTConfig(image_size=(32, 32), class_token=False, pool="mean", initialisation="zero_residual")

for _name, _size in _PAPER_SIZES.items():
    _add_size(_name, _size, "224 px", ViTConfig(image_size=(224, 224)))
for _name, _size in _SMALL_IMAGE_SIZES.items():
    _add_size(_name, _size, "small images", _SMALL_IMAGES)
for _name, _resnet, _blocks, _stride in _HYBRIDS:
    _size = _PAPER_SIZES[_name]
    _config = replace(
        MODELS[f"vit_{_name}_{_stride}"].config, stem="resnet", resnet_blocks=_blocks, patch_size=_stride
    )  # fmt: skip
    _text = f"{_resnet.upper()}+ViT-{_size.letters}/{_stride}: a ResNet of {_blocks} blocks, then {_size.depth} of a ViT, 224 px"
    MODELS.add(f"vit_{_name}_{_resnet}_{_stride}", Variant(f"vit_{_name}_{_resnet}_{_stride}", _config, _text, _HYBRID))
for _variant in (*resnet.VARIANTS, *regnet.VARIANTS, *convnext.VARIANTS):
    MODELS.add(_variant.name, _variant)
