from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from kawara import models
from kawara.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from kawara.errors import ConfigError, ModelFileError, RunFolderError
from kawara.models import create_model
from kawara.weights import ModelCard, huggingface
from kawara.weights.foreign import Hints, RawCheckpoint
from kawara.weights.huggingface.processor import read_preprocessing, write_preprocessing

D, HEADS, LAYERS, PATCH, SIDE, CLASSES = 24, 3, 2, 4, 12, 5
PREFIX = {"vit": "vit.", "deit": "deit.", "dinov2": "dinov2.", "dinov2_with_registers": "dinov2_with_registers."}


def made(family: str = "vit", *, head: bool = True, registers: int = 2, bias: bool = True) -> RawCheckpoint:
    """Make a small checkpoint with the names of transformers 4, without any code of kawara."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    dinov2, tokens = family.startswith("dinov2"), 2 if family == "deit" else 1
    prefix = PREFIX[family] if head else ""
    tensors = {
        "embeddings.cls_token": draw(1, 1, D),
        "embeddings.position_embeddings": draw(1, tokens + (SIDE // PATCH) ** 2, D),
        "embeddings.patch_embeddings.projection.weight": draw(D, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": draw(D),
        "layernorm.weight": draw(D),
        "layernorm.bias": draw(D),
    }
    if family == "deit":
        tensors["embeddings.distillation_token"] = draw(1, 1, D)
    if family == "dinov2_with_registers":
        tensors["embeddings.register_tokens"] = draw(1, registers, D)
    if dinov2:
        tensors["embeddings.mask_token"] = draw(1, D)
    names = (
        ("mlp.fc1", "mlp.fc2", "norm1", "norm2")
        if dinov2
        else ("intermediate.dense", "output.dense", "layernorm_before", "layernorm_after")
    )
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            tensors[f"{block}attention.attention.{part}.weight"] = draw(D, D)
            if bias:
                tensors[f"{block}attention.attention.{part}.bias"] = draw(D)
        tensors |= {f"{block}attention.output.dense.weight": draw(D, D), f"{block}attention.output.dense.bias": draw(D)}
        tensors |= {f"{block}{names[0]}.weight": draw(4 * D, D), f"{block}{names[0]}.bias": draw(4 * D)}
        tensors |= {f"{block}{names[1]}.weight": draw(D, 4 * D), f"{block}{names[1]}.bias": draw(D)}
        for norm in names[2:]:
            tensors |= {f"{block}{norm}.weight": draw(D), f"{block}{norm}.bias": draw(D)}
        if dinov2:
            tensors |= {f"{block}layer_scale{number}.lambda1": draw(D) for number in (1, 2)}
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    if head:
        for name in ("cls_classifier", "distillation_classifier") if family == "deit" else ("classifier",):
            tensors |= {f"{name}.weight": draw(CLASSES, 2 * D if dinov2 else D), f"{name}.bias": draw(CLASSES)}
    config = {
        "model_type": family,
        "hidden_size": D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-3,  # large enough to be seen
        "image_size": SIDE,
        "patch_size": PATCH,
        "num_channels": 3,
        "qkv_bias": bias,
        **({"mlp_ratio": 4} if dinov2 else {"intermediate_size": 4 * D}),
        **({"num_register_tokens": registers} if family == "dinov2_with_registers" else {}),
        **({"id2label": {str(index): f"kind {index}" for index in range(CLASSES)}} if head else {}),
    }
    return RawCheckpoint("made", tensors, config=config)


def with_new_names(checkpoint: RawCheckpoint) -> RawCheckpoint:
    """Rename as transformers 5 does in memory."""
    rules = [
        (r"attention\.attention\.(query|key|value)", lambda match: f"attention.{match[1][0]}_proj"),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"output\.dense", "mlp.fc2"),
    ]
    if not checkpoint.config["model_type"].startswith("dinov2"):
        rules.append((r"encoder\.layer\.", "layers."))
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        for old, new in rules:
            name = re.sub(old, new, name)
        tensors[name] = tensor
    return RawCheckpoint("new", tensors, config=checkpoint.config)


def slow_tokens(checkpoint: RawCheckpoint, image: torch.Tensor) -> torch.Tensor:
    """Return the last hidden state by the definition, in float64, for names of transformers 4."""
    config, prefix = checkpoint.config, PREFIX[checkpoint.config["model_type"]]
    tensors = {name.removeprefix(prefix): tensor.double() for name, tensor in checkpoint.tensors.items()}

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(x: torch.Tensor, *names: str) -> torch.Tensor:
        name = next(name for name in names if f"{name}.weight" in tensors)
        return F.layer_norm(x, (D,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], config["layer_norm_eps"])

    patches = F.conv2d(
        image.double(),
        tensors["embeddings.patch_embeddings.projection.weight"],
        tensors["embeddings.patch_embeddings.projection.bias"],
        stride=PATCH,
    )
    prefix_tokens = [tensors[f"embeddings.{name}"] for name in ("cls_token", "distillation_token") if f"embeddings.{name}" in tensors]
    x = torch.cat([*(token.expand(len(image), -1, -1) for token in prefix_tokens), patches.flatten(2).mT], dim=1)
    x = x + tensors["embeddings.position_embeddings"]
    if "embeddings.register_tokens" in tensors:
        x = torch.cat([x[:, :1], tensors["embeddings.register_tokens"].expand(len(image), -1, -1), x[:, 1:]], dim=1)
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}."
        scales = [tensors.get(f"{block}layer_scale{number}.lambda1", torch.ones(D).double()) for number in (1, 2)]
        normed = norm(x, f"{block}norm1", f"{block}layernorm_before")
        heads = [
            linear(normed, f"{block}attention.attention.{part}").unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        ]
        weights = (heads[0] @ heads[1].mT / (D / HEADS) ** 0.5).softmax(dim=-1)
        x = x + scales[0] * linear((weights @ heads[2]).transpose(1, 2).flatten(2), f"{block}attention.output.dense")
        normed = norm(x, f"{block}norm2", f"{block}layernorm_after")
        if f"{block}mlp.weights_in.weight" in tensors:
            gate, up = linear(normed, f"{block}mlp.weights_in").chunk(2, dim=-1)
            x = x + scales[1] * linear(F.silu(gate) * up, f"{block}mlp.weights_out")
            continue
        first, second = ("mlp.fc1", "mlp.fc2") if f"{block}mlp.fc1.weight" in tensors else ("intermediate.dense", "output.dense")
        x = x + scales[1] * linear(F.gelu(linear(normed, block + first)), block + second)
    return norm(x, "layernorm")


def slow_logits(checkpoint: RawCheckpoint, image: torch.Tensor) -> torch.Tensor:
    """Return what the model of `architectures` (or of the family) answers."""
    tokens, tensors = slow_tokens(checkpoint, image), {name: tensor.double() for name, tensor in checkpoint.tensors.items()}
    family = checkpoint.config["model_type"]
    if family == "deit":
        heads = [
            F.linear(tokens[:, i], tensors[f"{name}.weight"], tensors[f"{name}.bias"])
            for i, name in enumerate(("cls_classifier", "distillation_classifier"))
        ]
        return (heads[0] + heads[1]) / 2
    read = tokens[:, 0]
    if family.startswith("dinov2"):
        registers = checkpoint.config.get("num_register_tokens", 0)
        read = torch.cat([read, tokens[:, 1 + registers :].mean(dim=1)], dim=1)
    return F.linear(read, tensors["classifier.weight"], tensors["classifier.bias"])


def build(checkpoint: RawCheckpoint, hints: Hints | None = None):
    foreign = huggingface.FORMAT.read(checkpoint, hints or Hints())
    model = models.build(foreign.config).eval()
    model.load_state_dict(foreign.state)
    return model, foreign


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((got.double() - expected).abs().max() <= 1e-5 * expected.abs().max())


def changed(checkpoint: RawCheckpoint, *, config: dict | None = None, tensors: dict | None = None) -> RawCheckpoint:
    return RawCheckpoint("made", {**checkpoint.tensors, **(tensors or {})}, config={**checkpoint.config, **(config or {})})


IMAGE = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rename", [lambda checkpoint: checkpoint, with_new_names], ids=["names of 4", "names of 5"])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("family", PREFIX)
@torch.no_grad()
def test_every_family_answers_as_by_its_definition(family, head, rename):
    checkpoint = made(family, head=head)
    assert huggingface.FORMAT.recognises(rename(checkpoint))
    model, foreign = build(rename(checkpoint))
    assert close(model.features(IMAGE).tokens, slow_tokens(checkpoint, IMAGE))
    if head and not family.startswith("dinov2"):
        assert close(model(IMAGE), slow_logits(checkpoint, IMAGE))
        assert foreign.class_names == tuple(f"kind {index}" for index in range(CLASSES))
    else:
        assert (model.config.num_classes, foreign.class_names) == (0, ())
    assert {fate.source for fate in foreign.fates} == set(rename(checkpoint).tensors)
    assert {fate.target for fate in foreign.fates if fate.target} == set(model.state_dict())


def test_the_classifier_of_dinov2_is_left_out_with_a_word():
    _, foreign = build(made("dinov2"))
    assert {fate.source for fate in foreign.fates if fate.what == "dropped"} == {
        "dinov2.embeddings.mask_token",
        "classifier.weight",
        "classifier.bias",
    }
    assert any("classifier is left out" in note for note in foreign.notes)


@torch.no_grad()
def test_query_biases_that_are_switched_off_are_zero_and_accounted_for():
    checkpoint = made(bias=False)
    model, foreign = build(checkpoint)
    assert close(model(IMAGE), slow_logits(checkpoint, IMAGE))
    missing = [fate for fate in foreign.fates if fate.what == "missing"]
    assert [fate.target for fate in missing] == [f"blocks.{layer}.attn.qkv.bias" for layer in range(LAYERS)]
    assert all("qkv_bias is false" in fate.how for fate in missing)


def test_what_pre_training_left_is_dropped_with_a_reason():
    extra = {
        "vit.embeddings.mask_token": torch.zeros(1, 1, D),
        "pooler.dense.weight": torch.zeros(D, D),
        "decoder.decoder_pred.bias": torch.zeros(3),
    }
    _, foreign = build(changed(made(), tensors=extra))
    dropped = {fate.source: fate.how for fate in foreign.fates if fate.what == "dropped"}
    assert set(dropped) == set(extra)
    assert "pre-training" in dropped["vit.embeddings.mask_token"]
    assert "tanh" in dropped["pooler.dense.weight"]
    assert "decoder" in dropped["decoder.decoder_pred.bias"]


@pytest.mark.parametrize(
    ("family", "method"), [("vit", "bicubic"), ("deit", "bicubic"), ("dinov2", "bicubic"), ("dinov2_with_registers", "bicubic-antialias")]
)
def test_positions_are_resized_as_in_the_source(family, method):
    assert build(made(family))[1].config.position_resize == method


@pytest.mark.parametrize(
    ("name", "activation"), [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("relu", "relu")]
)
def test_the_activation_is_that_of_the_configuration(name, activation):
    assert build(changed(made(), config={"hidden_act": name}))[1].config.activation == activation


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_point_becomes_float32_and_says_so(dtype):
    checkpoint = made()
    model, foreign = build(
        RawCheckpoint("made", {name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()}, config=checkpoint.config)
    )
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert all(str(dtype).removeprefix("torch.") in fate.how for fate in foreign.fates)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": 48}, "hidden_size 48"),
        ({"num_hidden_layers": 3}, "num_hidden_layers 3"),
        ({"intermediate_size": 24}, "intermediate_size 24"),
        ({"patch_size": 16}, "patch_size 16"),
        ({"num_channels": 1}, "num_channels 1"),
        ({"image_size": 16}, "image_size 16"),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"qkv_bias": False}, "qkv_bias False"),
        ({"id2label": {"0": "cat", "1": "dog"}}, "id2label"),
        ({"num_attention_heads": "3"}, "makes no sense"),
        ({"num_attention_heads": True}, "makes no sense"),
        ({"layer_norm_eps": float("nan")}, "makes no sense"),
        ({"layer_norm_eps": -1}, "makes no sense"),
        ({"image_size": [12, 12, 12]}, "makes no sense"),
        ({"hidden_act": "silu"}, "hidden_act silu"),
        ({"hidden_dropout_prob": 1.5}, "cannot build"),
        ({"model_type": "beit"}, "model_type beit"),
        ({"model_type": None}, "model_type None"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(config, words):
    with pytest.raises(ModelFileError, match=words):
        build(changed(made(), config=config))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"vit.encoder.layer.0.attention.relative_bias": torch.zeros(3)}, "cannot explain"),
        ({"vit.layernorm.bias": torch.zeros(D + 1)}, "layernorm.bias gives"),
        ({"vit.layernorm.bias": torch.zeros(D, dtype=torch.int64)}, "floating-point"),
        ({"vit.embeddings.position_embeddings": torch.zeros(D)}, "unexpected shape"),
        ({"vit.layers.0.attention.o_proj.bias": torch.zeros(D)}, "twice"),
        ({"vit.embeddings.patch_embeddings.projection.weight": torch.zeros(D, 3, 4, 2)}, "not square"),
        ({"vit.embeddings.patch_embeddings.projection.weight": torch.zeros(D, 4, 4, 4)}, "4 channels"),
        ({"vit.encoder.layer.99999999999999999999.output.dense.bias": torch.zeros(D)}, "cannot explain"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors, words):
    with pytest.raises(ModelFileError, match=words):
        build(changed(made(), tensors=tensors))


@pytest.mark.parametrize(
    "name", ["vit.embeddings.cls_token", "vit.encoder.layer.1.attention.attention.key.bias", "classifier.bias", "vit.layernorm.weight"]
)
def test_a_checkpoint_with_a_hole_is_refused(name):
    checkpoint = made()
    with pytest.raises(ModelFileError, match="has no tensor"):
        build(
            RawCheckpoint(
                "made", {other: tensor for other, tensor in checkpoint.tensors.items() if other != name}, config=checkpoint.config
            )
        )


def test_whatever_is_wrong_is_said_as_such():
    """Spoil one thing at a time: a shape, a tensor, a value of either JSON. Anything but an answer or a ModelFileError is a fault."""
    original = made("deit")
    alone = {name: tensor for name, tensor in original.tensors.items() if not name.startswith("distillation_c")}
    alone = {name.replace("cls_classifier", "classifier"): tensor for name, tensor in alone.items()}
    values = [None, True, -1, 0, 10**400, 1e308, float("nan"), "x", [], [0, 0], {}, {"height": 10**400}]
    checkpoints = []
    for tensors, config in ((alone, original.config), (made("dinov2").tensors, made("dinov2").config)):
        for name, tensor in tensors.items():
            if "layer.1." in name:
                continue
            for other in (tensor[None], tensor.flatten(), tensor[:0], tensor.sum(), torch.cat([tensor, tensor]), tensor.int()):
                checkpoints.append(RawCheckpoint("spoilt", {**tensors, name: other}, config))
            checkpoints.append(RawCheckpoint("spoilt", {other: tensors[other] for other in tensors if other != name}, config))
        checkpoints += [RawCheckpoint("spoilt", tensors, {**config, name: value}) for name in config for value in values]
        for name in (*DINOV2, "do_resize", "do_rescale", "do_normalize"):
            checkpoints += [RawCheckpoint("spoilt", tensors, config, {**DINOV2, name: value}) for value in values]
    refused = 0
    for checkpoint in checkpoints:
        try:
            foreign = huggingface.FORMAT.read(checkpoint, Hints())
        except ModelFileError:
            refused += 1
            continue
        with torch.device("meta"):
            models.build(foreign.config).load_state_dict(foreign.state, assign=True)
    assert len(checkpoints) > refused > 0.6 * len(checkpoints)


def test_without_a_configuration_the_remedy_is_told():
    with pytest.raises(ModelFileError, match=r"no config\.json.*\n.*put the config\.json"):
        build(RawCheckpoint("made", made().tensors))


def test_heads_that_are_not_said_are_assumed_with_a_note_or_taken_from_the_hint():
    checkpoint = made()
    silent = RawCheckpoint(
        "made", checkpoint.tensors, config={name: value for name, value in checkpoint.config.items() if name != "num_attention_heads"}
    )
    _, assumed = build(silent)
    assert assumed.config.heads == 12
    assert any("--heads" in note for note in assumed.notes)
    _, told = build(silent, Hints(heads=3))
    assert told.config.heads == 3
    assert not any("heads" in note for note in told.notes)
    with pytest.raises(ModelFileError, match="--heads 2"):
        build(checkpoint, Hints(heads=2))


def test_names_that_only_count_are_no_names():
    labels = {str(index): f"LABEL_{index}" for index in range(CLASSES)}
    assert build(changed(made(), config={"id2label": labels}))[1].class_names == ("0", "1", "2", "3", "4")


def test_the_model_is_called_by_its_name_on_the_hub():
    assert build(changed(made(), config={"_name_or_path": "google/vit-base-patch16-224"}))[1].name == "vit-base-patch16-224"
    assert build(changed(made(), config={"_name_or_path": "/home/me/\x1b[31m../"}))[1].name == "31m"
    assert build(made("dinov2"))[1].name == "dinov2"


# preprocessor_config.json

IMAGENET = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
OLD_VIT = {"feature_extractor_type": "ViTFeatureExtractor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "size": 224}
OLD_DEIT = {
    **IMAGENET,
    "feature_extractor_type": "DeiTFeatureExtractor",
    "resample": 3,
    "size": 256,
    "crop_size": 224,
    "do_center_crop": True,
}
DINOV2 = {
    **IMAGENET,
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}
NOT_RESCALED = {"do_rescale": False, "image_mean": [51.0] * 3, "image_std": [102.0] * 3}
SQUASHED = Preprocessing((224, 224), resize="squash", crop_fraction=1.0, interpolation="bilinear", mean=HALF, std=HALF)


@pytest.mark.parametrize(
    ("values", "family", "expected", "words"),
    [
        (OLD_VIT, "vit", SQUASHED, []),
        (OLD_DEIT, "deit", Preprocessing((224, 224)), ["aspect ratio"]),
        (DINOV2, "dinov2", Preprocessing((224, 224)), []),
        ({**DINOV2, "size": {"shortest_edge": 249}}, "dinov2", 249, []),
        ({**DINOV2, "resample": 1}, "dinov2", Preprocessing((224, 224)), ["resampling method 1"]),
        ({**DINOV2, "do_center_crop": False}, "dinov2", Preprocessing((256, 256), crop_fraction=1.0), ["no crop"]),
        ({**DINOV2, "do_resize": False}, "dinov2", None, ["no resize"]),
        ({**DINOV2, "do_normalize": False}, "dinov2", Preprocessing((224, 224), mean=(0.0,) * 3, std=(1.0,) * 3), []),
        ({**DINOV2, **NOT_RESCALED}, "dinov2", Preprocessing((224, 224), mean=(0.2,) * 3, std=(0.4,) * 3), []),
        ({}, "vit", replace(SQUASHED, image_size=(384, 384)), ["no preprocessor_config.json"]),
    ],
)
def test_a_preprocessor_configuration_becomes_a_preprocessing(values, family, expected, words):
    found, notes = read_preprocessing(values, family, (384, 384), 3, None, "made")
    if isinstance(expected, int):
        assert (found.stored_side, found.resize) == (expected, "crop")
    elif expected is not None:
        for name in ("image_size", "resize", "crop_fraction", "interpolation"):
            assert getattr(found, name) == getattr(expected, name), name
        assert found.mean == pytest.approx(expected.mean)
        assert found.std == pytest.approx(expected.std)
    assert len(notes) == len(words)
    for note, word in zip(notes, words):
        assert word in note


def test_a_hint_decides_the_colours():
    found, _ = read_preprocessing(OLD_VIT, "vit", (224, 224), 3, "imagenet", "made")
    assert (found.mean, found.std) == (IMAGENET_MEAN, IMAGENET_STD)
    grey, _ = read_preprocessing({}, "vit", (28, 28), 1, "half", "made")
    assert (grey.color, grey.mean, grey.std) == ("grey", (0.5,), (0.5,))


@pytest.mark.parametrize(
    "values",
    [
        {"size": "224"},
        {"size": {"height": 224}},
        {"size": 0},
        {"size": True},
        {"image_mean": [0.5, 0.5]},
        {"image_mean": "half"},
        {"image_std": [0.0, 0.5, 0.5]},
        {"image_std": [float("nan"), 0.5, 0.5]},
        {"rescale_factor": 0},
    ],
)
def test_a_preprocessor_configuration_that_makes_no_sense_is_refused(values):
    with pytest.raises(ModelFileError, match="preprocessor_config"):
        read_preprocessing({**OLD_VIT, **values}, "vit", (224, 224), 3, None, "made")


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("color", ["rgb", "grey"])
def test_a_preprocessing_that_is_written_comes_back(resize, color):
    channels = 3 if color == "rgb" else 1
    preprocessing = Preprocessing(
        (28, 28),
        color=color,
        resize=resize,
        crop_fraction=0.875 if resize == "crop" else 1.0,
        mean=(0.3,) * channels,
        std=(0.2,) * channels,
    )
    assert read_preprocessing(write_preprocessing(preprocessing)[0], "vit", (28, 28), channels, None, "made")[0] == preprocessing


# Writing

SMALL = {
    "width": D,
    "heads": HEADS,
    "depth": LAYERS,
    "mlp_hidden": 4 * D,
    "patch_size": PATCH,
    "image_size": (SIDE, SIDE),
    "class_token": True,
    "pool": "class",
}
SHAPES = {
    "vit": {"norm_eps": 1e-3},
    "deit": {"distillation_token": True},
    "dinov2": {"layer_scale": 0.1},
    "dinov2_with_registers": {"layer_scale": 0.1, "registers": 2},
    "swiglu": {"layer_scale": 0.1, "mlp": "swiglu", "mlp_hidden": 64},
}


def own(**options):
    torch.manual_seed(0)
    model = create_model("vit_femto_4", **{"num_classes": CLASSES} | SMALL | options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    names = tuple(f"ねこ {index}" for index in range(model.config.num_classes))
    return model, ModelCard("made", model.config, names, Preprocessing(image_size=model.config.image_size, crop_fraction=0.75))


def written(folder) -> RawCheckpoint:
    read = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("config", "preprocessor_config")}
    return RawCheckpoint(str(folder), load_file(folder / "model.safetensors"), read["config"], read["preprocessor_config"])


@pytest.mark.parametrize("num_classes", [CLASSES, 0])
@pytest.mark.parametrize("family", SHAPES)
@torch.no_grad()
def test_what_is_written_comes_back_bit_for_bit(family, num_classes, tmp_path):
    model, card = own(num_classes=num_classes, **SHAPES[family])
    files = huggingface.write(tmp_path / "out", model, card)
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    back, foreign = build(written(tmp_path / "out"))
    # How a model began, and how it treats other sizes, is not in the folder.
    assert replace(foreign.config, position_resize=model.config.position_resize, initialisation=model.config.initialisation) == model.config
    assert foreign.class_names == card.class_names
    assert foreign.preprocessing == card.preprocessing
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state_dict().items())


SPELLED_OUT = {
    "mean of the patches": {"pool": "mean"},
    "mean of the patches with registers": {"pool": "mean", "registers": 2},
    "no layer scale with registers": {"registers": 2},
    "positions of the patches alone": {"class_position": False},
    "fixed positions": {"position": "sincos"},
    "no positions": {"position": "none"},
    "no biases": {"bias": False},
    "norm after pooling": {"final_norm": "pooled"},
}


@pytest.mark.parametrize("case", [*SHAPES, *SPELLED_OUT])
@torch.no_grad()
def test_what_is_written_answers_alike_by_the_definition(case, tmp_path):
    model, card = own(**(SHAPES | SPELLED_OUT)[case])
    huggingface.write(tmp_path / "out", model, card)
    assert close(model(IMAGE), slow_logits(written(tmp_path / "out"), IMAGE))
    back, _ = build(written(tmp_path / "out"))
    assert close(back(IMAGE), model(IMAGE).double())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stem": "conv", "patch_size": 4}, "stem of convolutions"),
        ({"class_token": False, "pool": "mean"}, "without class token"),
        ({"pool": "mean", "final_norm": "pooled"}, "final_norm 'pooled'"),
        ({"distillation_token": True, "registers": 1}, "distillation token together"),
        ({"layer_scale": 0.1, "image_size": (12, 16)}, "not square"),
        ({"layer_scale": 0.1, "mlp_hidden": 60}, "no whole mlp_ratio"),
        ({"mlp": "swiglu", "mlp_hidden": 62}, "no whole mlp_ratio"),
        ({"head_hidden": 7}, "hidden layer in the head"),
        ({"pool": "mean", "num_classes": 0}, "without a head"),
    ],
)
def test_what_transformers_cannot_express_is_named_and_nothing_is_written(options, words, tmp_path):
    model, card = own(**options)
    with pytest.raises(ConfigError, match=words):
        huggingface.write(tmp_path / "out", model, card)
    assert list(tmp_path.iterdir()) == []


def test_differences_at_other_sizes_are_said():
    model, card = own()
    assert ["bicubic-antialias" in note for note in huggingface.differences(model.config, card)] == [True]
    larger = replace(card, preprocessing=Preprocessing((24, 24)))
    assert any("interpolate_pos_encoding" in note for note in huggingface.differences(model.config, larger))
    model, card = own(registers=1)
    assert huggingface.differences(model.config, card) == []


def test_a_failed_write_leaves_nothing_and_what_exists_stays(tmp_path, monkeypatch):
    model, card = own()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="exists already"):
        huggingface.write(tmp_path / "taken", model, card)
    with pytest.raises(RunFolderError, match="cannot be written"):
        huggingface.write(tmp_path / "no" / "such" / "place", model, card)
    for error in (OSError(28, "No space left on device"), safetensors.SafetensorError("I/O error: No space left on device")):

        def fail(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr("kawara.weights.huggingface.writing.safetensors.torch.save_file", fail)
        with pytest.raises(RunFolderError, match="space"):
            huggingface.write(tmp_path / "out", model, card)
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "notes.txt"]
