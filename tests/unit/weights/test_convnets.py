"""CNN checkpoints of timm and torchvision: made up here, read back, every tensor accounted for."""

import dataclasses
import zlib
from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kawara.data.preprocessing import Preprocessing
from kawara.errors import ConfigError, ModelFileError
from kawara.models import ConvNeXtConfig, RegNetConfig, ResNetConfig, build, model_config
from kawara.weights import ModelCard, timm
from kawara.weights.convnets import FORMATS, TIMM_CONVNETS, TORCHVISION_CONVNETS, kawara_name
from kawara.weights.foreign import Foreign, Hints, RawCheckpoint
from kawara.weights.importing import open_model

CONFIGS = {
    "basic": ResNetConfig(num_classes=5, block="basic", expansion=1, depths=(1, 2), widths=(4, 8), stem_width=6),
    "bottleneck": ResNetConfig(num_classes=5, depths=(2, 1), widths=(4, 8), expansion=3, groups=2, stem_width=6),
    "squeezed": ResNetConfig(num_classes=5, depths=(1, 1), widths=(64, 128), stem_width=4, squeeze_reduction=8),
    "small": dataclasses.replace(model_config("resnet20", num_classes=5), depths=(1, 2, 1), zero_residual=True),
    "regnety": RegNetConfig(num_classes=5, depths=(1, 2), widths=(8, 24), group_width=12, stem_width=12),
    "regnetx": RegNetConfig(num_classes=5, depths=(1, 2), widths=(8, 16), group_width=4, stem_width=12, squeeze_ratio=0.0),
    "convnext": ConvNeXtConfig(num_classes=5, depths=(1, 2), widths=(4, 8), kernel_size=5),
    "convnext_small": ConvNeXtConfig(
        image_size=(32, 32), num_classes=5, channels=1, depths=(1, 1), widths=(4, 8), stem_stride=1, layer_scale=None
    ),
}  # fmt: skip


def raw(tensors: Mapping[str, Tensor], **others) -> RawCheckpoint:
    return RawCheckpoint("model.safetensors", tensors, **others)


def state(name: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {key: tensor.clone() for key, tensor in build(CONFIGS[name]).state_dict().items()}


def read(tensors: Mapping[str, Tensor], hints: Hints = Hints(), **others) -> Foreign:  # noqa: B008  Hints is frozen
    checkpoint = raw(tensors, **others)
    (layout,) = [layout for layout in FORMATS if layout.recognises(checkpoint)]
    return layout.read(checkpoint, hints)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_architecture_is_read_off_the_shapes(name: str) -> None:
    tensors = state(name)
    foreign = read(tensors)
    assert foreign.format == "timm"
    assert foreign.config == CONFIGS[name]
    assert foreign.class_names == ("0", "1", "2", "3", "4")
    assert set(foreign.state) == set(tensors)
    assert all(torch.equal(foreign.state[key], tensors[key]) for key in tensors)
    assert {(fate.what, fate.how) for fate in foreign.fates} == {("used", "as it is")}
    assert sorted(fate.source for fate in foreign.fates) == sorted(tensors)
    build(foreign.config).load_state_dict(foreign.state)


def made_up(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor that only its name and shape decide, so that torchvision could be given the same."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    phase = zlib.crc32(name.encode()) % 1000
    wave = torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.7 + phase).reshape(shape).float()
    return 0.05 + 0.02 * wave if name.endswith("running_var") else 0.4 * wave


def torchvision_regnet() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's RegNet(depths [1, 2], widths [8, 16], groups of 4, SE 0.25, stem 12, 3 classes)."""
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (3, 16), "fc.bias": (3,)}

    def convolution(name: str, *shape: int) -> None:
        shapes[f"{name}.0.weight"] = shape
        shapes[f"{name}.1.num_batches_tracked"] = ()
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.1.{part}"] = shape[:1]

    convolution("stem", 12, 3, 3, 3)
    for block, narrow, wide, hidden in (("1.block1-0", 12, 8, 3), ("2.block2-0", 8, 16, 2), ("2.block2-1", 16, 16, 4)):
        block = f"trunk_output.block{block}"
        convolution(f"{block}.f.a", wide, narrow, 1, 1)
        convolution(f"{block}.f.b", wide, 4, 3, 3)
        convolution(f"{block}.f.c", wide, wide, 1, 1)
        if narrow != wide:
            convolution(f"{block}.proj", wide, narrow, 1, 1)
        shapes |= {f"{block}.f.se.fc1.weight": (hidden, wide, 1, 1), f"{block}.f.se.fc1.bias": (hidden,)}
        shapes |= {f"{block}.f.se.fc2.weight": (wide, hidden, 1, 1), f"{block}.f.se.fc2.bias": (wide,)}
    return shapes


def torchvision_convnext() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's ConvNeXt(2 blocks of 8 channels, 1 block of 12, 3 classes)."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    layer("features.0.0", 8, 3, 4, 4)
    layer("features.0.1", 8)
    layer("features.2.0", 8)
    layer("features.2.1", 12, 8, 2, 2)
    for block, width in (("features.1.0", 8), ("features.1.1", 8), ("features.3.0", 12)):
        shapes[f"{block}.layer_scale"] = (width, 1, 1)
        layer(f"{block}.block.0", width, 1, 7, 7)
        layer(f"{block}.block.2", width)
        layer(f"{block}.block.3", 4 * width, width)
        layer(f"{block}.block.5", width, 4 * width)
    layer("classifier.0", 12)
    layer("classifier.2", 3, 12)
    return shapes


# What torchvision 0.28 answers with these weights to made_up("image", (2, 3, 40, 48)) · 3, run once beside a CPU torch.
TORCHVISION = {
    "regnet": (
        torchvision_regnet,
        [[-13.936432838439941, -11.856583595275879, 9.332416534423828], [-13.683279991149902, -11.142722129821777, 9.369098663330078]],
    ),
    "convnext": (
        torchvision_convnext,
        [[0.14434610307216644, 1.1945158243179321, -0.8041560649871826], [0.14484751224517822, 1.190626621246338, -0.8006182312965393]],
    ),
}


@pytest.mark.parametrize("family", TORCHVISION)
@torch.no_grad()
def test_torchvisions_layout_gives_torchvisions_answers(family: str) -> None:
    shapes, answers = TORCHVISION[family]
    tensors = {name: made_up(name, shape) for name, shape in shapes().items()}
    foreign = read(tensors)
    assert foreign.format == "torchvision"
    model = build(foreign.config)
    model.load_state_dict(foreign.state)
    logits = model.eval()(made_up("image", (2, 3, 40, 48)) * 3)
    expected = torch.tensor(answers)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert sorted(fate.source for fate in foreign.fates) == sorted(tensors)
    assert {fate.what for fate in foreign.fates} == {"used"}


def test_torchvisions_names_one_by_one() -> None:
    pairs = {
        "trunk_output.block2.block2-3.f.a.0.weight": "s2.b4.conv1.conv.weight",
        "trunk_output.block2.block2-0.proj.1.running_var": "s2.b1.downsample.bn.running_var",
        "trunk_output.block4.block4-0.f.se.fc2.bias": "s4.b1.se.fc2.bias",
        "features.0.1.bias": "stem.1.bias",
        "features.5.8.block.3.weight": "stages.2.blocks.8.mlp.fc1.weight",
        "features.7.2.layer_scale": "stages.3.blocks.2.gamma",
        "features.6.1.weight": "stages.3.downsample.1.weight",
        "classifier.2.bias": "head.fc.bias",
        "trunk_output.block2.block3-0.proj.1.weight": "trunk_output.block2.block3-0.proj.1.weight",
        "nothing": "nothing",
    }
    assert {name: kawara_name(name) for name in pairs} == pairs


def test_other_formats_are_not_taken_for_cnns() -> None:
    for names in (["cls_token", "blocks.0.attn.qkv.weight"], ["features.1.0.norm1.weight"], ["features.1.0.block.0.0.weight"], []):
        checkpoint = raw({name: torch.zeros(1) for name in names})
        assert not any(layout.recognises(checkpoint) for layout in FORMATS)
    assert TIMM_CONVNETS.recognises(raw(state("regnety")))
    assert not TORCHVISION_CONVNETS.recognises(raw(state("regnety")))


def test_an_mlp_of_convolutions_is_taken_as_matrices() -> None:
    tensors = state("convnext")
    convolved = {name: tensor[:, :, None, None] if ".mlp." in name and tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    foreign = read(convolved)
    assert all(torch.equal(foreign.state[name], tensor) for name, tensor in tensors.items())
    assert {fate.how for fate in foreign.fates if ".mlp.fc1.weight" in (fate.source or "")} == {
        "reshaped from (16, 4, 1, 1)",
        "reshaped from (32, 8, 1, 1)",
    }


def test_counters_may_be_missing_and_half_precision_becomes_single() -> None:
    tensors = {name: tensor.half() for name, tensor in state("basic").items() if "num_batches_tracked" not in name}
    foreign = read(tensors)
    missing = [fate for fate in foreign.fates if fate.what == "missing"]
    assert len(missing) == 9
    assert all(fate.source is None and fate.target and fate.target.endswith("num_batches_tracked") for fate in missing)
    assert {fate.how for fate in foreign.fates if fate.what == "used"} == {"as it is, from float16 to float32"}
    assert foreign.state["conv1.weight"].dtype == torch.float32
    build(foreign.config).load_state_dict(foreign.state)


def test_a_file_opens_like_any_other(tmp_path) -> None:
    model = build(CONFIGS["squeezed"]).eval()
    torch.nn.init.normal_(model.fc.weight)
    save_file(model.state_dict(), tmp_path / "resnet.safetensors")
    found, card, foreign = open_model(tmp_path / "resnet.safetensors")
    image = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(found(image), model(image))
    assert card.config == CONFIGS["squeezed"]
    assert foreign is not None
    assert foreign.format == "timm"


def test_a_backbone_has_no_classes() -> None:
    for name, head in (("basic", "fc."), ("regnety", "head.fc."), ("convnext", "head.fc.")):
        foreign = read({key: tensor for key, tensor in state(name).items() if not key.startswith(head)})
        assert foreign.config.num_classes == 0
        assert foreign.class_names == ()


def test_known_architectures_have_kawaras_name() -> None:
    for name in ("resnet18", "regnety_400mf", "convnext_atto", "convnext_ronto_2", "seresnet_pico"):
        with torch.device("meta"):
            shapes = build(model_config(name, num_classes=2)).state_dict()
        foreign = read({key: torch.zeros(tensor.shape, dtype=tensor.dtype) for key, tensor in shapes.items()})
        assert foreign.name == name
    assert read(state("basic")).name == "resnet"


def test_config_json_says_name_classes_and_preprocessing() -> None:
    written = {
        "architecture": "resnet18d.x_in1k",
        "label_names": ["a", "b", "c", "d", "e"],
        "pretrained_cfg": {
            "input_size": [3, 160, 176],
            "crop_pct": 0.95,
            "interpolation": "bicubic",
            "mean": [0.1, 0.2, 0.3],
            "std": [1.0, 1.0, 2.0],
        },
    }
    foreign = read(state("basic"), config=written)
    assert foreign.name == "resnet18d.x_in1k"
    assert foreign.class_names == ("a", "b", "c", "d", "e")
    assert foreign.config.image_size == foreign.preprocessing.image_size == (160, 176)
    assert (foreign.preprocessing.crop_fraction, foreign.preprocessing.interpolation) == (0.95, "bicubic")
    assert (foreign.preprocessing.mean, foreign.preprocessing.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 2.0))
    assert foreign.notes == []
    halved = read(state("basic"), Hints(normalisation="half"), config=written)
    assert halved.preprocessing.mean == halved.preprocessing.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"architecture": 3}, "architecture"),
        ({"pretrained_cfg": {"mean": [1]}}, "mean"),
        ({"pretrained_cfg": {"std": [1, 1, 0], "mean": [0, 0, 0]}}, "impossible"),
        ({"pretrained_cfg": {"crop_pct": 7}}, "impossible"),
        ({"pretrained_cfg": {"input_size": [3, -1, 1e9]}}, "makes no sense"),
    ],
)
def test_nonsense_in_config_json_is_refused(written: dict, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read(state("basic"), config=written)


def test_what_is_usual_is_assumed_and_said() -> None:
    usual = {"basic": (0.875, "bilinear"), "regnety": (0.95, "bicubic"), "convnext": (0.875, "bicubic"), "small": (1.0, "bilinear")}
    for name, (crop_fraction, interpolation) in usual.items():
        foreign = read(state(name))
        assert (foreign.preprocessing.crop_fraction, foreign.preprocessing.interpolation) == (crop_fraction, interpolation)
        assert foreign.preprocessing.mean == (0.485, 0.456, 0.406)
        assert any("How images are prepared is assumed" in note for note in foreign.notes)
    for family, crop_fraction in (("regnet", 0.875), ("convnext", 224 / 232)):
        tensors = {name: made_up(name, shape) for name, shape in TORCHVISION[family][0]().items()}
        foreign = read(tensors)
        assert (foreign.preprocessing.crop_fraction, foreign.preprocessing.interpolation) == (crop_fraction, "bilinear")
    assert any("pooling" in note for note in read(state("small")).notes)
    assert read(state("convnext_small")).preprocessing.mean == pytest.approx((0.449,), abs=1e-3)


def test_the_number_of_heads_means_nothing_to_a_cnn() -> None:
    with pytest.raises(ConfigError, match="no attention heads"):
        read(state("basic"), Hints(heads=3))


def changed(name: str, changes: dict[str, Tensor | None]) -> dict[str, Tensor]:
    tensors = {**state(name), **{key: tensor for key, tensor in changes.items() if tensor is not None}}
    return {key: tensor for key, tensor in tensors.items() if changes.get(key, tensor) is not None}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("basic", {"layer1.0.se.conv.weight": torch.zeros(1, 1, 3)}, "efficient channel attention"),
        ("basic", {"conv1.weight": None, "conv1.0.weight": torch.zeros(6, 3, 3, 3)}, "several convolutions"),
        ("convnext", {"stages.0.blocks.0.mlp.grn.weight": torch.zeros(16)}, "ConvNeXt V2"),
        ("basic", {"anything.weight": torch.zeros(1)}, "cannot explain"),
        ("basic", {f"layer{'9' * 5000}.0.conv1.weight": torch.zeros(1)}, "cannot explain"),
        ("basic", {"layer2.1.bn2.running_var": None}, "no tensor for layer2.1.bn2.running_var"),
        ("basic", {"layer2.0.downsample.0.weight": None}, "no tensor for layer2.0.downsample.0.weight"),
        ("basic", {"conv1.weight": None}, "conv1.weight should be a convolution"),
        ("basic", {"layer2.1.conv2.weight": torch.zeros(8, 9, 3, 3)}, "layer2.1.conv2.weight gives"),
        ("basic", {"fc.weight": torch.zeros(5, 8, dtype=torch.int64)}, "floating-point"),
        ("basic", {"bn1.num_batches_tracked": torch.tensor(0.5)}, "not a whole number"),
        ("basic", {"bn1.num_batches_tracked": torch.tensor([1, 2])}, "do not go together"),
        ("basic", {"layer4.0.conv1.weight": torch.zeros(8, 8, 3, 3)}, "without gaps"),
        ("basic", {"layer2.3.conv1.weight": torch.zeros(8, 8, 3, 3)}, "without gaps"),
        ("basic", {"conv1.weight": torch.zeros(6, 3, 5, 5)}, "7×7 or a 3×3"),
        ("basic", {"conv1.weight": torch.zeros(6, 5, 7, 7)}, "5 channels"),
        ("basic", {"layer1.0.conv2.weight": torch.zeros(4, 5, 3, 3)}, "groups"),
        ("squeezed", {"layer2.0.se.fc1.weight": torch.zeros(5, 512, 1, 1)}, "no known reduction"),
        ("regnety", {"s2.b1.conv2.conv.weight": torch.zeros(24, 9, 3, 3)}, "multiple of the group width"),
        ("convnext", {"stages.1.blocks.0.conv_dw.weight": torch.zeros(8, 1, 0, 0)}, "should be a convolution"),
    ],
)
def test_what_cannot_be_explained_is_refused(name: str, changes: dict[str, Tensor | None], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read(changed(name, changes))


def test_a_cnn_needs_no_conversion_to_timm(tmp_path) -> None:
    config = CONFIGS["basic"]
    card = ModelCard("resnet18", config, ("0", "1", "2", "3", "4"), Preprocessing())
    with pytest.raises(ConfigError, match="timm's names already"):
        timm.write(tmp_path / "x", build(config), card)
