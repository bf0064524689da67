"""MACs: formula, counter and the published table agree."""

import pytest
import torch
from torch import nn

from kawara.analysis.cost import count_macs, count_parameters, vit_macs
from kawara.models import create_model, model_config

# name, image size, parameters (one class token, learned positions, 1000 classes), GMACs; computed from the definitions, agree with
# torchvision's and timm's lists.
PUBLISHED = [
    ("vit_tiny_16", 224, 5_717_416, 1.25),
    ("vit_tiny_16", 384, 5_790_376, 4.68),
    ("vit_small_16", 224, 22_050_664, 4.60),
    ("vit_small_16", 384, 22_196_584, 15.49),
    ("vit_small_32", 224, 22_878_952, 1.14),
    ("vit_small_8", 224, 22_055_272, 22.41),
    ("vit_base_16", 224, 86_567_656, 17.56),
    ("vit_base_16", 384, 86_859_496, 55.48),
    ("vit_base_32", 224, 88_224_232, 4.41),
    ("vit_base_8", 224, 86_576_872, 78.15),
    ("vit_large_16", 224, 304_326_632, 61.55),
    ("vit_large_16", 384, 304_715_752, 191.07),
    ("vit_large_32", 224, 306_535_400, 15.38),
    ("vit_huge_14", 224, 632_045_800, 167.30),
]

# name, parameters, products at 224 px (both of timm 1.0.31's own models, the same counter), and timm's published GMACs, norms included.
PUBLISHED_CNNS = [
    ("resnet18", 11_689_512, 1_814_073_344, 1.82),
    ("resnet34", 21_797_672, 3_663_761_408, 3.67),
    ("resnet50", 25_557_032, 4_089_184_256, 4.11),
    ("resnet101", 44_549_160, 7_801_405_440, 7.83),
    ("seresnet50", 28_088_024, 4_091_699_200, 4.11),
    ("regnety_400mf", 4_344_144, 401_842_848, None),
    ("regnety_1_6gf", 11_202_430, 1_612_076_160, 1.63),
    ("regnety_16gf", 83_590_140, 15_911_510_272, 15.96),
    ("convnext_atto", 3_695_520, 547_332_480, None),
    ("convnext_tiny", 28_589_128, 4_455_531_264, 4.47),
    ("convnext_base", 88_591_464, 15_354_729_472, None),
]


@pytest.mark.parametrize(("name", "size", "num_parameters", "gmacs"), PUBLISHED)
def test_the_table_of_the_paper_sizes(name: str, size: int, num_parameters: int, gmacs: float) -> None:
    with torch.device("meta"):
        model = create_model(name, image_size=size)
    assert count_parameters(model) == num_parameters
    assert round(vit_macs(model.config) / 1e9, 2) == pytest.approx(gmacs, abs=0.0051)
    assert count_macs(model) == vit_macs(model.config)


@pytest.mark.parametrize(("name", "num_parameters", "macs", "gmacs"), PUBLISHED_CNNS)
def test_the_table_of_the_cnns(name: str, num_parameters: int, macs: int, gmacs: float | None) -> None:
    with torch.device("meta"):
        model = create_model(name)
    norms = 0

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal norms
        norms += (2 if isinstance(module, nn.BatchNorm2d) else 5) * output.numel()

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.register_forward_hook(count)
    assert count_parameters(model) == num_parameters
    assert count_macs(model) == macs
    if gmacs is not None:
        assert round((macs + norms) / 1e9, 2) == gmacs


def test_a_small_cnn_by_hand() -> None:
    # stem 3→4 on 8×8; stage 1: two 3×3 of 4 on 8×8; stage 2: 4→8, 8→8 and the 1×1 shortcut on 4×4; SE of 8 hidden; head 8→5
    stem, stage1, stage2 = 64 * 9 * 3 * 4, 64 * 9 * (4 * 4 + 4 * 4), 16 * (9 * 4 * 8 + 9 * 8 * 8 + 4 * 8)
    squeeze = 2 * 4 * 8 + 2 * 8 * 8
    model = create_model(
        "seresnet_femto", num_classes=5, image_size=8, depths=(1, 1), widths=(4, 8), stem_width=4, stochastic_depth=0.5
    )  # fmt: skip
    assert count_macs(model) == stem + stage1 + stage2 + squeeze + 8 * 5


@pytest.mark.parametrize(("name", "num_parameters"), [("tiny", 5_910_800), ("small", 22_436_432), ("base", 87_338_192)])
def test_distilled_deit(name: str, num_parameters: int) -> None:
    with torch.device("meta"):
        model = create_model(f"vit_{name}_16", distillation_token=True)
    assert count_parameters(model) == num_parameters


@pytest.mark.parametrize(
    ("name", "image_size", "options"),
    [
        ("vit_femto_4", None, {"distillation_token": True, "registers": 4}),
        ("vit_nano_conv_4", (36, 52), {"channels": 1}),
        ("vit_pico_conv_8", (28, 28), {"stem_projection": True}),
        ("vit_pico_conv_4", None, {"stem_hidden": (24, 64)}),
        ("vit_micro_7", (56, 28), {"class_token": True, "pool": "class"}),
        ("vit_femto_4", None, {"pool": "map", "registers": 2, "class_token": True}),
        ("vit_femto_4", None, {"mlp": "swiglu", "head_hidden": 24}),
        ("vit_femto_4", None, {"merge": 5}),
        ("vit_femto_4", None, {"merge": 5, "merge_every": 2}),
        ("vit_femto_4", (28, 36), {"merge": 20, "merge_inflection": -0.5, "registers": 3, "class_token": True, "pool": "map"}),
        ("vit_femto_4", None, {"merge": 99, "distillation_token": True, "class_token": True, "mlp": "swiglu"}),
        ("vit_femto_8", (64, 96), {"stem": "resnet", "resnet_width": 32, "resnet_blocks": (2, 1), "image_size": (64, 64)}),
        ("vit_femto_8", (64, 32), {"stem": "resnet", "resnet_width": 32, "resnet_blocks": (), "image_size": (32, 32)}),
    ],
)
def test_formula_and_counter_agree(name: str, image_size: tuple[int, int] | None, options: dict) -> None:
    model = create_model(name, num_classes=10, **options)
    model.train()
    assert count_macs(model, image_size) == vit_macs(model.config, image_size)
    assert model.training
    assert all(block.attn.fused for block in model.blocks)


def test_the_papers_hybrid_agrees_with_the_published_count() -> None:
    # timm's list has 98.95 M parameters and 67.43 GMACs for R50+ViT-B/16 at 384 px; its counter includes some of what is no product.
    with torch.device("meta"):
        model = create_model("vit_base_16", image_size=384, stem="resnet")
    assert count_parameters(model) / 1e6 == pytest.approx(98.95, abs=0.005)
    assert count_macs(model) == vit_macs(model.config)
    assert count_macs(model) / 1e9 == pytest.approx(67.43, rel=0.005)


def test_the_formula_needs_no_model() -> None:
    # 49 patches of 16 numbers, one class token: (49·16·64) + 3·(4·49·64² + 2·49²·64 + 2·49·64·256) + 64·10
    config = model_config("vit_femto_4", num_classes=10, image_size=28, channels=1)
    assert vit_macs(config) == 49 * 16 * 64 + 3 * (4 * 49 * 64**2 + 2 * 49**2 * 64 + 2 * 49 * 64 * 256) + 640


def test_merged_tokens_cost_nothing_by_hand() -> None:
    # 16 patches of 48 numbers and a class token in 2 blocks of width 32, E = 16; r = 3: 17 tokens, then 14, then 11; the head reads one
    model = create_model(
        "vit_femto_4", num_classes=5, image_size=16, width=32, depth=2, mlp_hidden=64, class_token=True, pool="class", merge=3
    )
    attention = 4 * 17 * 32**2 + 2 * 17**2 * 32 + 4 * 14 * 32**2 + 2 * 14**2 * 32
    matching, mlp = (8 * 8 + 6 * 7) * 16, 2 * (14 + 11) * 32 * 64
    assert vit_macs(model.config) == count_macs(model) == 16 * 48 * 32 + attention + matching + mlp + 32 * 5


def test_the_papers_hybrid_costs_what_timm_says():
    with torch.device("meta"):
        model = create_model("vit_base_r50_16", image_size=384)
    assert count_parameters(model) / 1e6 == pytest.approx(98.95, abs=0.005)
    assert count_macs(model) / 1e9 == pytest.approx(67.43, rel=0.01)
