from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from kawara import models
from kawara.data.preprocessing import HALF, IMAGENET_MEAN
from kawara.errors import ModelFileError
from kawara.weights import torchvision
from kawara.weights.foreign import Hints, RawCheckpoint

D, LAYERS, PATCH, SIDE, CLASSES = 32, 2, 4, 12, 5


def made(width: int = D, *, patch: int = PATCH, side: int = SIDE, layers: int = LAYERS, head: bool = True) -> RawCheckpoint:
    """Make a small checkpoint with the names of torchvision, without any code of kawara."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    tensors = {
        "class_token": draw(1, 1, width),
        "conv_proj.weight": draw(width, 3, patch, patch),
        "conv_proj.bias": draw(width),
        "encoder.pos_embedding": draw(1, 1 + (side // patch) ** 2, width),
        "encoder.ln.weight": draw(width),
        "encoder.ln.bias": draw(width),
    }
    shapes = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "self_attention.in_proj_weight": (3 * width, width),
        "self_attention.in_proj_bias": (3 * width,),
        "self_attention.out_proj.weight": (width, width),
        "self_attention.out_proj.bias": (width,),
        "mlp.0.weight": (2 * width, width),
        "mlp.0.bias": (2 * width,),
        "mlp.3.weight": (width, 2 * width),
        "mlp.3.bias": (width,),
    }
    for layer in range(layers):
        tensors |= {f"encoder.layers.encoder_layer_{layer}.{name}": draw(*shape) for name, shape in shapes.items()}
    if head:
        tensors |= {"heads.head.weight": draw(CLASSES, width), "heads.head.bias": draw(CLASSES)}
    return RawCheckpoint("made", tensors)


def slow_logits(tensors: dict[str, torch.Tensor], image: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the answer by the definition, in float64, with torch's own multi-head attention."""
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    patches = F.conv2d(image.double(), tensors["conv_proj.weight"], tensors["conv_proj.bias"], stride=PATCH).flatten(2).mT
    x = torch.cat([tensors["class_token"].expand(len(image), -1, -1), patches], dim=1) + tensors["encoder.pos_embedding"]
    for layer in range(LAYERS):
        block = {
            name.removeprefix(f"encoder.layers.encoder_layer_{layer}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"encoder.layers.encoder_layer_{layer}.")
        }
        attention = torch.nn.MultiheadAttention(D, heads, batch_first=True, dtype=torch.float64)
        attention.load_state_dict(
            {name.removeprefix("self_attention."): value for name, value in block.items() if "self_attention" in name}
        )
        normed = F.layer_norm(x, (D,), block["ln_1.weight"], block["ln_1.bias"], 1e-6)
        x = x + attention(normed, normed, normed, need_weights=False)[0]
        normed = F.layer_norm(x, (D,), block["ln_2.weight"], block["ln_2.bias"], 1e-6)
        hidden = F.gelu(F.linear(normed, block["mlp.0.weight"], block["mlp.0.bias"]))
        x = x + F.linear(hidden, block["mlp.3.weight"], block["mlp.3.bias"])
    x = F.layer_norm(x[:, 0], (D,), tensors["encoder.ln.weight"], tensors["encoder.ln.bias"], 1e-6)
    if "heads.pre_logits.weight" in tensors:
        x = F.linear(x, tensors["heads.pre_logits.weight"], tensors["heads.pre_logits.bias"]).tanh()
    return F.linear(x, tensors["heads.head.weight"], tensors["heads.head.bias"])


def with_old_names(checkpoint: RawCheckpoint) -> RawCheckpoint:
    names = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
    return RawCheckpoint(
        "made", {re.sub(r"mlp\.[03]\.", lambda match: names[match[0]], name): tensor for name, tensor in checkpoint.tensors.items()}
    )


def with_hidden_layer(checkpoint: RawCheckpoint) -> RawCheckpoint:
    tensors = dict(checkpoint.tensors) | {"heads.pre_logits.weight": 0.3 * torch.randn(7, D), "heads.pre_logits.bias": torch.randn(7)}
    return RawCheckpoint("made", tensors | {"heads.head.weight": torch.randn(CLASSES, 7)})


@pytest.mark.parametrize(
    "rename", [lambda checkpoint: checkpoint, with_old_names, with_hidden_layer], ids=["newer names", "older names", "hidden layer"]
)
@torch.no_grad()
def test_it_answers_as_by_its_definition(rename):
    checkpoint = rename(made())
    assert torchvision.FORMAT.recognises(checkpoint)
    foreign = torchvision.FORMAT.read(checkpoint, Hints(heads=4))
    model = models.build(foreign.config).eval()
    model.load_state_dict(foreign.state)
    image = torch.randn(2, 3, SIDE, SIDE)
    newer = {name.replace("linear_1.", "0.").replace("linear_2.", "3."): tensor for name, tensor in checkpoint.tensors.items()}
    expected = slow_logits(newer, image, heads=4)
    assert (model(image) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert {fate.source for fate in foreign.fates} == set(checkpoint.tensors)
    assert {fate.what for fate in foreign.fates} == {"used"}
    assert foreign.class_names == ("0", "1", "2", "3", "4")
    assert foreign.config.position_resize == "bicubic-corners"


@pytest.mark.parametrize(
    ("width", "hint", "sidecar", "heads", "noted"),
    [
        (32, None, {}, 1, True),  # 64 does not divide it, 32 does
        (48, None, {}, 3, True),
        (128, None, {}, 2, True),
        (192, None, {}, 3, False),
        (48, 6, {}, 6, False),
        (48, None, {"num_heads": 4}, 4, False),
        (192, 6, {"num_heads": 4}, 6, False),
    ],
)
def test_heads_come_from_the_user_then_the_sidecar_then_the_width(width, hint, sidecar, heads, noted):
    checkpoint = RawCheckpoint("made", made(width, layers=1).tensors, config=sidecar)
    foreign = torchvision.FORMAT.read(checkpoint, Hints(heads=hint))
    assert foreign.config.heads == heads
    assert any("--heads N" in note for note in foreign.notes) is noted


@pytest.mark.parametrize(("hint", "sidecar"), [(5, {}), (None, {"num_heads": 5}), (None, {"num_heads": "four"}), (None, {"num_heads": 0})])
def test_heads_that_do_not_divide_the_width_are_refused(hint, sidecar):
    with pytest.raises(ModelFileError, match=r"do not divide|makes no sense"):
        torchvision.FORMAT.read(RawCheckpoint("made", made().tensors, config=sidecar), Hints(heads=hint))


def test_a_width_of_no_known_heads_asks_for_them():
    with pytest.raises(ModelFileError, match="--heads N"):
        torchvision.FORMAT.read(made(20), Hints())


@pytest.mark.parametrize(
    ("width", "patch", "side", "layers", "name", "stored_side", "interpolation", "noted"),
    [
        (768, 16, 224, 12, "vit_b_16", 256, "bilinear", True),
        (1024, 16, 224, 24, "vit_l_16", 242, "bilinear", True),
        (768, 16, 384, 12, "vit_b_16", 384, "bicubic", False),
        (1280, 14, 518, 32, "vit_h_14", 518, "bicubic", False),
        (1280, 14, 224, 32, "vit_h_14", 224, "bicubic", False),
        (32, 4, 28, 2, "torchvision_vit", 32, "bilinear", True),
    ],
)
def test_images_are_prepared_as_for_the_published_weights(width, patch, side, layers, name, stored_side, interpolation, noted):
    checkpoint = shapes_alone(width, patch, side, layers)
    foreign = torchvision.FORMAT.read(checkpoint, Hints(heads=width // 32))
    found = foreign.preprocessing
    assert (foreign.name, found.stored_side, found.interpolation, found.mean) == (name, stored_side, interpolation, IMAGENET_MEAN)
    assert bool(foreign.notes) is noted


def shapes_alone(width: int, patch: int, side: int, layers: int) -> RawCheckpoint:
    """Make a checkpoint of any size without its numbers."""
    small = made(2, patch=patch, side=side, layers=1)
    longer = {2: width, 4: 2 * width, 6: 3 * width}
    tensors = {}
    for name, tensor in small.tensors.items():
        shape = [width, 3, patch, patch] if name == "conv_proj.weight" else [longer.get(length, length) for length in tensor.shape]
        for layer in range(layers if "layer_0" in name else 1):
            tensors[name.replace("layer_0", f"layer_{layer}")] = torch.empty(shape, device="meta")
    return RawCheckpoint("made", tensors)


def test_a_hint_decides_the_colours():
    assert torchvision.FORMAT.read(made(), Hints(heads=2, normalisation="half")).preprocessing.mean == HALF


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"conv_proj.conv_bn_relu_0.0.weight": torch.zeros(8, 3, 3, 3)}, "stem of convolutions"),
        ({"encoder.layers.encoder_layer_0.surprise.weight": torch.zeros(3)}, "cannot explain"),
        ({"encoder.pos_embedding": torch.zeros(1, 12, D)}, "12 positions"),
        ({"encoder.pos_embedding": torch.zeros(12)}, "unexpected shape"),
        ({"encoder.ln.bias": torch.zeros(3)}, "do not go together"),
    ],
)
def test_what_does_not_fit_is_refused(tensors, words):
    with pytest.raises(ModelFileError, match=words):
        torchvision.FORMAT.read(RawCheckpoint("made", {**made().tensors, **tensors}), Hints(heads=2))


def test_a_backbone_without_head_has_no_classes():
    foreign = torchvision.FORMAT.read(made(head=False), Hints(heads=2))
    assert (foreign.config.num_classes, foreign.class_names) == (0, ())
