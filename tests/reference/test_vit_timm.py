"""Parity with timm: its own small models, its own answers, within 1e-5 of the largest absolute value."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kawara.models import VisionTransformer, ViTConfig

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"the stored answers are not at {REFERENCE}")

# What cannot be seen in the tensors.
MEAN_POOLED = {"pool": "mean", "final_norm": "pooled"}
CASES: dict[str, dict] = {
    "timm_vit": {},
    "timm_vit_gap": {**MEAN_POOLED, "class_token": False},
    "timm_deit_distilled": {"distillation_token": True},
    "timm_deit3_layerscale": {"class_position": False, "layer_scale": 1.0},
    "timm_vit_reg4_gap": {**MEAN_POOLED, "class_token": False, "registers": 4, "layer_scale": 1.0},
    "timm_dinov2_reg4": {"class_position": False, "registers": 4, "layer_scale": 1.0},
}


def load(name: str) -> VisionTransformer:
    written = json.loads((REFERENCE / f"{name}.json").read_text())
    state = {key.replace("fc_norm.", "norm."): tensor for key, tensor in load_file(REFERENCE / f"{name}.safetensors").items()}
    config = ViTConfig(
        image_size=(written["img_size"],) * 2,
        num_classes=written["num_classes"],
        patch_size=written["patch_size"],
        width=written["embed_dim"],
        depth=written["depth"],
        heads=written["num_heads"],
        mlp_hidden=state["blocks.0.mlp.fc1.weight"].shape[0],
        **CASES[name],
    )
    model = VisionTransformer(config).eval()
    model.load_state_dict(state)
    return model


def assert_equal(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    error = (got - expected).abs().max() / expected.abs().max()
    assert error <= 1e-5, f"relative error {error:.2e}"


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_tokens_and_logits(name: str) -> None:
    model, answers = load(name), load_file(REFERENCE / f"{name}.io.safetensors")
    assert_equal(model.features(answers["input"]).tokens, answers["tokens"])
    assert_equal(model(answers["input"]), answers["logits"])


@pytest.mark.parametrize("size", ["24x32", "48x48", "64x40"])
@torch.no_grad()
def test_other_sizes(size: str) -> None:
    model, answers = load("timm_vit"), load_file(REFERENCE / "timm_vit_other_sizes.io.safetensors")
    assert_equal(model(answers[f"input_{size}"]), answers[f"logits_{size}"])


def test_parameter_names_are_timms() -> None:
    names = set(load_file(REFERENCE / "timm_vit.safetensors"))
    assert set(load("timm_vit").state_dict()) == names
