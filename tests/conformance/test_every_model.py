"""Every registered model, one by one: what all of them must be able to do.

Sizes from base upwards run on the meta device: shapes and counts without numbers.
"""

import re
from pathlib import Path

import pytest
import torch

from kawara.models import MODELS, ImageModel, ViTConfig, build, create_model, model_names

# With 1000 classes at the row's own image size. A new row needs a new line; the published ones are checked in tests/unit/analysis too.
NUM_PARAMETERS = {
    "vit_tiny_8": 5_719_720,
    "vit_tiny_14": 5_694_376,
    "vit_tiny_16": 5_717_416,
    "vit_tiny_32": 6_131_560,
    "vit_tiny_conv_8": 5_891_992,
    "vit_tiny_conv_16": 5_788_864,
    "vit_tiny_conv_32": 5_762_932,
    "vit_small_8": 22_055_272,
    "vit_small_14": 22_004_584,
    "vit_small_16": 22_050_664,
    "vit_small_32": 22_878_952,
    "vit_small_conv_8": 22_814_536,
    "vit_small_conv_16": 22_629_016,
    "vit_small_conv_32": 22_582_336,
    "vit_base_8": 86_576_872,
    "vit_base_14": 86_475_496,
    "vit_base_16": 86_567_656,
    "vit_base_32": 88_224_232,
    "vit_base_conv_8": 89_754_280,
    "vit_base_conv_16": 89_466_184,
    "vit_base_conv_32": 89_393_560,
    "vit_large_8": 304_338_920,
    "vit_large_14": 304_203_752,
    "vit_large_16": 304_326_632,
    "vit_large_32": 306_535_400,
    "vit_large_conv_8": 310_050_024,
    "vit_large_conv_16": 309_739_624,
    "vit_large_conv_32": 309_661_224,
    "vit_huge_14": 632_045_800,
    "vit_huge_16": 632_199_400,
    "vit_huge_conv_16": 640_901_000,
    "vit_giant_14": 1_012_611_432,
    "vit_giant_16": 1_012_780_392,
    "vit_giant_conv_16": 1_023_416_600,
    "vit_gigantic_14": 1_844_440_680,
    "vit_gigantic_16": 1_844_640_360,
    "vit_gigantic_conv_16": 1_859_726_392,
    "vit_small_r26_32": 36_431_912,
    "vit_base_r26_32": 101_383_976,
    "vit_base_r50_16": 98_659_112,
    "vit_large_r50_32": 328_994_856,
    "vit_femto_2": 232_296,
    "vit_femto_4": 222_312,
    "vit_femto_7": 225_576,
    "vit_femto_8": 228_456,
    "vit_femto_conv_2": 233_320,
    "vit_femto_conv_4": 238_664,
    "vit_femto_conv_8": 239_800,
    "vit_femto_conv_16": 243_824,
    "vit_pico_2": 570_376,
    "vit_pico_4": 555_400,
    "vit_pico_7": 560_296,
    "vit_pico_8": 564_616,
    "vit_pico_conv_2": 571_912,
    "vit_pico_conv_4": 593_752,
    "vit_pico_conv_8": 598_912,
    "vit_pico_conv_16": 605_812,
    "vit_nano_2": 1_353_320,
    "vit_nano_4": 1_333_352,
    "vit_nano_7": 1_339_880,
    "vit_nano_8": 1_345_640,
    "vit_nano_conv_2": 1_355_368,
    "vit_nano_conv_4": 1_402_920,
    "vit_nano_conv_8": 1_414_408,
    "vit_nano_conv_16": 1_424_760,
    "vit_micro_2": 2_914_216,
    "vit_micro_4": 2_884_264,
    "vit_micro_7": 2_894_056,
    "vit_micro_8": 2_902_696,
    "vit_micro_conv_2": 2_917_288,
    "vit_micro_conv_4": 3_043_912,
    "vit_micro_conv_8": 3_074_968,
    "vit_micro_conv_16": 3_093_952,
    "vit_mini_2": 4_248_808,
    "vit_mini_4": 4_218_856,
    "vit_mini_7": 4_228_648,
    "vit_mini_8": 4_237_288,
    "vit_mini_conv_2": 4_251_880,
    "vit_mini_conv_4": 4_378_504,
    "vit_mini_conv_8": 4_409_560,
    "vit_mini_conv_16": 4_428_544,
    "vit_lite7_2": 4_016_104,
    "vit_lite7_4": 3_976_168,
    "vit_lite7_7": 3_989_224,
    "vit_lite7_8": 4_000_744,
    "vit_lite7_conv_2": 4_020_200,
    "vit_lite7_conv_4": 4_262_760,
    "vit_lite7_conv_8": 4_322_600,
    "vit_lite7_conv_16": 4_352_520,
    "vit_milli_2": 5_854_696,
    "vit_milli_4": 5_814_760,
    "vit_milli_7": 5_827_816,
    "vit_milli_8": 5_839_336,
    "vit_milli_conv_2": 5_858_792,
    "vit_milli_conv_4": 6_101_352,
    "vit_milli_conv_8": 6_161_192,
    "vit_milli_conv_16": 6_191_112,
    "resnet18": 11_689_512,
    "resnet18_small": 11_681_832,
    "resnet34": 21_797_672,
    "resnet34_small": 21_789_992,
    "resnet50": 25_557_032,
    "resnet50_small": 25_549_352,
    "resnet101": 44_549_160,
    "resnet20": 334_072,
    "resnet32": 528_504,
    "resnet44": 722_936,
    "resnet56": 917_368,
    "resnet_femto": 239_608,
    "resnet_pico": 564_498,
    "resnet_nano": 1_365_538,
    "resnet_micro": 3_032_104,
    "resnet_mini": 4_433_350,
    "resnet_milli": 6_099_588,
    "seresnet18": 11_779_624,
    "seresnet18_small": 11_771_944,
    "seresnet34": 21_960_416,
    "seresnet34_small": 21_952_736,
    "seresnet50": 28_088_024,
    "seresnet50_small": 28_080_344,
    "seresnet101": 49_326_872,
    "seresnet20": 339_856,
    "seresnet32": 538_144,
    "seresnet44": 736_432,
    "seresnet56": 934_720,
    "seresnet_femto": 243_464,
    "seresnet_pico": 570_734,
    "seresnet_nano": 1_375_582,
    "seresnet_micro": 3_055_592,
    "seresnet_mini": 4_461_962,
    "seresnet_milli": 6_145_116,
    "regnety_400mf": 4_344_144,
    "regnety_800mf": 6_263_168,
    "regnety_1_6gf": 11_202_430,
    "regnety_3_2gf": 19_436_338,
    "regnety_4gf": 20_646_656,
    "regnety_8gf": 39_180_068,
    "regnety_12gf": 51_822_544,
    "regnety_16gf": 83_590_140,
    "convnext_ronto_1": 621_544,
    "convnext_ronto_2": 621_304,
    "convnext_yocto_1": 1_274_344,
    "convnext_yocto_2": 1_273_984,
    "convnext_zepto_1": 2_155_496,
    "convnext_zepto_2": 2_155_016,
    "convnext_atto_1": 3_692_840,
    "convnext_atto_2": 3_692_240,
    "convnext_atto": 3_695_520,
    "convnext_femto_1": 5_214_568,
    "convnext_femto_2": 5_213_848,
    "convnext_femto": 5_217_784,
    "convnext_pico": 9_045_672,
    "convnext_nano": 15_593_560,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
}

LIGHT = [name for name in model_names() if NUM_PARAMETERS.get(name, 0) < 10_000_000]
# One ViT stem of each kind for the tests that compute; the other strides differ only in their stem, whose tests are in unit/layers.
# Of the CNNs, one of each stem, block and shortcut, the wide ones narrowed.
NARROWED: dict[str, dict] = {
    "resnet18": {"widths": (8, 16, 24, 32), "stem_width": 8},
    "seresnet50": {"widths": (4, 8, 12, 16), "stem_width": 8},
    "regnety_400mf": {"widths": (8, 16, 24, 32), "stem_width": 16},
    "convnext_atto": {"widths": (8, 16, 24, 32)},
}
COMPUTED = [name for name in LIGHT if name.endswith(("_4", "_16"))] + [
    "resnet20",
    "seresnet_femto",
    "convnext_ronto_1",
    "convnext_ronto_2",
    *NARROWED,
]


def stride(name: str) -> int:
    """How many pixels there are to one cell of the feature grid."""
    config = MODELS[name].config
    return config.patch_size if isinstance(config, ViTConfig) else config.total_stride


def small_size(name: str) -> tuple[int, int]:
    """A non-square size other than the row's own, small enough to compute."""
    return 2 * stride(name), 3 * stride(name)


def shaken(name: str, **options) -> ImageModel:
    """A model with every parameter away from its starting value: some start at zero, where gradients stop."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, image_size=small_size(name), **NARROWED.get(name, {}), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def test_no_model_is_missing_from_the_table() -> None:
    assert set(NUM_PARAMETERS) == set(model_names())


def test_the_documents_give_the_same_numbers_for_the_cnns() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = {match[1]: match[2] for match in re.finditer(r"^\| `(\w+)` \|.*?\| (\d[\d,]{6,}) \|", text, re.MULTILINE)}
    documented = {name: int(number.replace(",", "")) for name, number in rows.items() if name in NUM_PARAMETERS}
    assert documented == {name: NUM_PARAMETERS[name] for name in documented}
    cnns = {name for name in model_names() if not name.startswith(("vit", "se")) and not re.fullmatch(r"convnext_\w+_1", name)}
    assert set(documented) == cnns


@pytest.mark.parametrize("name", model_names())
def test_parameter_count_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
        assert sum(parameter.numel() for parameter in model.parameters()) == NUM_PARAMETERS[name]
        height, width = model.config.image_size
        features = model.features(torch.empty(2, 3, height, width))
        logits = model.apply_heads(features)[0]
    assert features.tokens.shape == (2, features.num_prefix + features.grid[0] * features.grid[1], features.tokens.shape[-1])
    assert features.pooled.shape == (2, model.num_features)
    assert features.feature_map.shape[-2:] == features.grid
    assert logits.shape == (2, 1000)


@pytest.mark.parametrize("name", COMPUTED)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = shaken(name)
    model(torch.randn(3, 3, *small_size(name))).square().sum().backward()
    silent = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert silent == []


@pytest.mark.parametrize("name", COMPUTED)
def test_weights_go_out_and_in_bit_for_bit(name: str) -> None:
    model = shaken(name).eval()
    image = torch.randn(2, 3, *small_size(name))
    copy = build(model.config).eval()
    copy.load_state_dict(model.state_dict())
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())
    assert torch.equal(copy(image), model(image))


@pytest.mark.parametrize("name", COMPUTED)
def test_evaluation_is_deterministic_and_each_image_answers_alone(name: str) -> None:
    model = shaken(name, stochastic_depth=0.5, dropout=0.5).eval()
    image = torch.randn(3, 3, *small_size(name))
    with torch.no_grad():
        logits = model(image)
        assert torch.equal(model(image), logits)
        torch.testing.assert_close(model(image[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", COMPUTED)
def test_other_sizes_and_channels(name: str) -> None:
    for channels in (1, 5):
        model = shaken(name, channels=channels).eval()
        for rows, columns in ((1, 1), (3, 2), (4, 5)):
            features = model.features(torch.randn(2, channels, rows * stride(name), columns * stride(name)))
            assert features.grid == (rows, columns)
            assert features.tokens.shape[1] == features.num_prefix + rows * columns


@pytest.mark.parametrize("name", LIGHT)
def test_training_can_ask_what_it_needs(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=4)
    names = {key for key, _ in model.named_parameters()}
    layers = {key: model.layer_index(key) for key in names}
    assert set(layers.values()) == set(range(model.num_layers + 1))
    assert {layers[key] for key in model.head_parameters()} == {model.num_layers}
    assert model.no_decay() <= names
    assert {key for key in names if key.endswith("bias")} <= model.no_decay()
    model.reset_head(9)
    assert model.config.num_classes == 9
    assert {tuple(model.get_parameter(key).shape) for key in model.head_parameters()} == {(9, model.num_features), (9,)}
    model.reset_head(0)
    assert model.head_parameters() == set()


@pytest.mark.parametrize("name", ["vit_femto_4", "vit_femto_conv_4", "seresnet_femto", "regnety_400mf", "convnext_ronto_2"])
def test_same_seed_same_model(name: str) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(create_model(name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
