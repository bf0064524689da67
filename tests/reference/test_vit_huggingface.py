"""Parity with transformers: its own small models and answers (and those of torchvision), within 1e-5 of the largest absolute value.

The second half asks transformers itself, where it is installed, what it makes of the folders that kawara writes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from kawara import models
from kawara.data.preprocessing import Preprocessing
from kawara.models import VisionTransformer, create_model
from kawara.weights import ModelCard, huggingface, torchvision
from kawara.weights.foreign import Foreign, Hints, RawCheckpoint

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"the stored answers are not at {REFERENCE}")


def raw(folder: Path) -> RawCheckpoint:
    processor = folder / "preprocessor_config.json"
    return RawCheckpoint(
        str(folder),
        load_file(folder / "model.safetensors"),
        config=json.loads((folder / "config.json").read_text()),
        preprocessor=json.loads(processor.read_text()) if processor.exists() else {},
    )


def load(name: str) -> VisionTransformer:
    return build(huggingface.FORMAT.read(raw(REFERENCE / name), Hints()))


def build(foreign: Foreign) -> VisionTransformer:
    model = models.build(foreign.config).eval()
    model.load_state_dict(foreign.state)
    assert isinstance(model, VisionTransformer)
    return model


def answers(name: str) -> dict[str, torch.Tensor]:
    return load_file(REFERENCE / f"{name}.io.safetensors")


def assert_equal(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    error = (got - expected).abs().max() / expected.abs().max()
    assert error <= 1e-5, f"relative error {error:.2e}"


@needs_reference
@torch.no_grad()
def test_vit() -> None:
    stored = answers("hf_vit")
    assert_equal(load("hf_vit")(stored["input"]), stored["logits"])


@needs_reference
@torch.no_grad()
def test_distilled_deit_with_each_head_apart() -> None:
    model, stored = load("hf_deit_distilled"), answers("hf_deit_distilled")
    class_logits, distillation_logits = model.forward_heads(stored["input"])
    assert_equal(class_logits, stored["cls_logits"])
    assert_equal(distillation_logits, stored["distillation_logits"])
    assert_equal(model(stored["input"]), stored["logits"])


@needs_reference
@pytest.mark.parametrize("name", ["hf_dinov2", "hf_dinov2_registers"])
@torch.no_grad()
def test_dinov2(name: str) -> None:
    stored = answers(name)
    assert_equal(load(name).features(stored["input"]).tokens, stored["last_hidden_state"])


@needs_reference
@pytest.mark.parametrize("size", ["56x98", "70x70"])
@torch.no_grad()
def test_dinov2_at_other_sizes(size: str) -> None:
    stored = answers("hf_dinov2_other_sizes")
    assert_equal(load("hf_dinov2").features(stored[f"input_{size}"]).tokens, stored[f"last_hidden_state_{size}"])


@needs_reference
@torch.no_grad()
def test_torchvision() -> None:
    stored = answers("torchvision_vit")
    checkpoint = RawCheckpoint("torchvision_vit.safetensors", load_file(REFERENCE / "torchvision_vit.safetensors"))
    assert_equal(build(torchvision.FORMAT.read(checkpoint, Hints()))(stored["input"]), stored["logits"])


@needs_reference
@torch.no_grad()
def test_mae_encoder_by_what_its_decoder_makes_of_it() -> None:
    """Run kawara's encoder on the visible patches, and the stored decoder, written out slowly, on its answer."""
    stored, model = answers("hf_mae"), load("hf_mae")
    image, order = stored["input"], stored["noise"].argsort(dim=1)
    visible = order[:, : int(order.shape[1] * 0.25)]
    patches = model.embed(model.patch_embed(image), (4, 4))
    tokens = torch.cat([patches[:, :1], gather(patches[:, 1:], visible)], dim=1)
    for block in model.blocks:
        tokens = block(tokens)
    latent = model.norm(tokens)

    weights = {
        name.removeprefix("decoder."): tensor for name, tensor in raw(REFERENCE / "hf_mae").tensors.items() if name.startswith("decoder.")
    }
    embedded = linear(latent, weights, "decoder_embed")
    masked = weights["mask_token"].expand(2, 16 - visible.shape[1], -1)
    patches = gather(torch.cat([embedded[:, 1:], masked], dim=1), stored["ids_restore"])
    tokens = torch.cat([embedded[:, :1], patches], dim=1) + weights["decoder_pos_embed"]
    for number in range(2):
        tokens = decoder_block(tokens, weights, f"decoder_encoder.layer.{number}.", heads=4)
    tokens = norm(tokens, weights, "decoder_norm")
    assert_equal(linear(tokens, weights, "decoder_pred")[:, 1:], stored["reconstruction"])


def decoder_block(tokens: torch.Tensor, weights: dict[str, torch.Tensor], name: str, heads: int) -> torch.Tensor:
    normed = norm(tokens, weights, name + "layernorm_before")
    query, key, value = (
        linear(normed, weights, f"{name}attention.attention.{part}").unflatten(2, (heads, -1)).transpose(1, 2)
        for part in ("query", "key", "value")
    )
    attention = (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(dim=3)
    tokens = tokens + linear((attention @ value).transpose(1, 2).flatten(2), weights, name + "attention.output.dense")
    hidden = F.gelu(linear(norm(tokens, weights, name + "layernorm_after"), weights, name + "intermediate.dense"))
    return tokens + linear(hidden, weights, name + "output.dense")


def linear(tokens: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return tokens @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(tokens: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-12)


def gather(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


# What transformers makes of the folders that kawara writes.

SMALL = {"patch_size": 8, "width": 48, "depth": 2, "heads": 3, "mlp_hidden": 192, "class_token": True, "pool": "class"}
WRITTEN: dict[str, tuple[str, dict]] = {
    "vit": ("ViTForImageClassification", {"norm_eps": 1e-5, "activation": "gelu_tanh"}),
    "vit not square": ("ViTForImageClassification", {"image_size": (32, 48)}),
    "vit without biases, fixed positions": ("ViTForImageClassification", {"bias": False, "position": "sincos"}),
    "deit distilled": ("DeiTForImageClassificationWithTeacher", {"distillation_token": True}),
    "dinov2": ("Dinov2ForImageClassification", {"layer_scale": 0.3, "position_resize": "bicubic"}),
    "dinov2, mean of the patches": ("Dinov2ForImageClassification", {"pool": "mean"}),
    "registers": ("Dinov2WithRegistersForImageClassification", {"layer_scale": 0.3, "registers": 3, "class_position": False}),
    "registers without layer scale": ("Dinov2WithRegistersForImageClassification", {"registers": 1}),
    "swiglu": ("Dinov2ForImageClassification", {"layer_scale": 0.3, "mlp": "swiglu", "mlp_hidden": 128}),
    "backbone": ("ViTModel", {"num_classes": 0}),
    "backbone with registers": ("Dinov2WithRegistersModel", {"num_classes": 0, "registers": 4, "layer_scale": 1.0}),
}


def made(**options) -> tuple[VisionTransformer, ModelCard]:
    torch.manual_seed(0)
    model = create_model("vit_femto_8", **{"num_classes": 5, "image_size": (32, 32)} | SMALL | options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    names = tuple(f"kind {index}" for index in range(model.config.num_classes))
    assert isinstance(model, VisionTransformer)
    return model, ModelCard("made", model.config, names, Preprocessing(image_size=model.config.image_size))


@pytest.mark.parametrize("case", WRITTEN)
@torch.no_grad()
def test_transformers_loads_what_kawara_writes(case: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    architecture, options = WRITTEN[case]
    model, card = made(**options)
    huggingface.write(tmp_path / "written", model, card)
    auto = transformers.AutoModelForImageClassification if model.config.num_classes else transformers.AutoModel
    theirs, report = auto.from_pretrained(tmp_path / "written", output_loading_info=True)
    assert type(theirs).__name__ == architecture
    assert not report["unexpected_keys"]
    # A bare ViTModel always makes a pooler of its own, which no classifier uses.
    assert {name.partition(".")[0] for name in report["missing_keys"]} <= ({"pooler"} if architecture == "ViTModel" else set())
    image = torch.randn(2, 3, *model.config.image_size)
    answer = theirs.eval()(image)
    if model.config.num_classes:
        assert_equal(model(image), answer.logits)
        assert theirs.config.id2label[4] == "kind 4"
    else:
        assert_equal(model.features(image).tokens, answer.last_hidden_state)


@pytest.mark.parametrize("family", ["dinov2", "registers"])
@torch.no_grad()
def test_transformers_agrees_at_other_sizes_where_kawara_says_nothing_else(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model, card = made(**WRITTEN[family][1])
    huggingface.write(tmp_path / "written", model, card)
    assert huggingface.differences(model.config, card) == []
    image = torch.randn(1, 3, 40, 72)
    assert_equal(model(image), transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "written")(image).logits)


@torch.no_grad()
def test_a_deit_with_one_classifier_answers_alike_though_its_distillation_token_became_a_register(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.DeiTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192, image_size=32, patch_size=8, num_labels=4
    )
    theirs = transformers.DeiTForImageClassification(config).eval()
    for parameter in theirs.parameters():
        parameter.copy_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    model = build(huggingface.FORMAT.read(raw(tmp_path), Hints()))
    assert (model.config.registers, model.config.distillation_token) == (1, False)
    for size in ((32, 32), (40, 56)):
        image = torch.randn(2, 3, *size)
        assert_equal(model(image), theirs(image, interpolate_pos_encoding=True).logits)


MADE_THERE = {
    "ViTForImageClassification": ("ViTConfig", {"qkv_bias": False}),
    "ViTModel": ("ViTConfig", {"hidden_act": "gelu_new"}),
    "ViTMSNForImageClassification": ("ViTMSNConfig", {}),
    "Dinov2Model": ("Dinov2Config", {"qkv_bias": False}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", {"num_register_tokens": 2, "use_swiglu_ffn": True}),
}


@pytest.mark.parametrize("architecture", MADE_THERE)
@pytest.mark.parametrize("names", ["in memory", "in the file"])
@torch.no_grad()
def test_kawara_reads_what_transformers_has_in_memory_and_in_its_files(architecture: str, names: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config_name, options = MADE_THERE[architecture]
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8, "num_labels": 4}
    if "Dinov2" not in architecture:
        sizes["intermediate_size"] = 96
    theirs = getattr(transformers, architecture)(getattr(transformers, config_name)(**sizes | options)).eval()
    for parameter in theirs.parameters():
        parameter.copy_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    checkpoint = raw(tmp_path)
    if names == "in memory":
        checkpoint = RawCheckpoint("memory", dict(theirs.state_dict()), config=checkpoint.config)
    model = build(huggingface.FORMAT.read(checkpoint, Hints()))
    image = torch.randn(2, 3, 32, 32)
    answer = theirs(image)
    if "logits" in answer:
        assert_equal(model(image), answer.logits)
    else:
        assert_equal(model.features(image).tokens, answer.last_hidden_state)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(image_size=(32, 32)),
        Preprocessing(image_size=(32, 32), resize="squash", crop_fraction=1.0, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3),
    ],
    ids=["crop", "squash"],
)
def test_transformers_prepares_images_alike(preprocessing: Preprocessing, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model, card = made()
    card = ModelCard("made", model.config, card.class_names, preprocessing)
    huggingface.write(tmp_path / "written", model, card)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "written")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    theirs = torch.as_tensor(np.asarray(processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]))
    ours = preprocessing.normalise(preprocessing.place(pixels)[None])
    one_level = 1 / (255 * min(preprocessing.std))
    assert theirs.shape == ours.shape
    # Resizing differs from Pillow's by at most one level.
    assert (theirs - ours).abs().max() <= 1.5 * one_level
