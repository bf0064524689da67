"""Checkpoints of others, opened as a user opens them, answer as their own libraries did: within 1e-5 of the largest absolute value."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kawara.weights.foreign import Hints
from kawara.weights.importing import Imported, import_checkpoint

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"the stored answers are not at {REFERENCE}")

TIMM = ["timm_vit", "timm_vit_gap", "timm_deit_distilled", "timm_deit3_layerscale", "timm_vit_reg4_gap", "timm_dinov2_reg4"]
GOOGLE = {
    "google_vit_p8_d48_l3": {},
    "google_vit_p8_d48_l2_prelogits": {"head_hidden": 48},
    "google_hybrid_r_d48_l2": {"stem": "resnet", "resnet_blocks": (1, 1, 1), "resnet_width": 32, "patch_size": 16},
}
# What timm's own models of these names are prepared with.
HALF_COLORS = {"timm_vit", "timm_vit_gap", "timm_vit_reg4_gap"}


def assert_equal(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    error = (got - expected).abs().max() / expected.abs().max()
    assert error <= 1e-5, f"relative error {error:.2e}"


def assert_all_used(imported: Imported) -> None:
    assert {fate.what for fate in imported.foreign.fates} == {"used"}
    assert {fate.target for fate in imported.foreign.fates} == set(imported.model.state_dict())


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_timm(name: str) -> None:
    imported, answers = import_checkpoint(REFERENCE / f"{name}.safetensors"), load_file(REFERENCE / f"{name}.io.safetensors")
    assert_equal(imported.model.features(answers["input"]).tokens, answers["tokens"])
    assert_equal(imported.model(answers["input"]), answers["logits"])
    assert_all_used(imported)
    assert (imported.card.preprocessing.mean[0] == 0.5) == (name in HALF_COLORS)
    assert imported.card.config.position_resize == "bicubic-antialias"
    assert len(imported.card.class_names) == (0 if name == "timm_dinov2_reg4" else 10)


@torch.no_grad()
def test_the_authors_deit() -> None:
    imported, answers = (
        import_checkpoint(REFERENCE / "deit_release.pth", Hints(heads=3)),
        load_file(REFERENCE / "deit_release.io.safetensors"),
    )
    assert_equal(imported.model(answers["input"]), answers["logits"])
    assert_all_used(imported)
    assert imported.card.config.position_resize == "bicubic"
    assert imported.card.preprocessing.mean[0] == 0.485


@pytest.mark.parametrize("name", GOOGLE)
@torch.no_grad()
def test_google(name: str) -> None:
    imported, answers = import_checkpoint(REFERENCE / f"{name}.npz"), np.load(REFERENCE / f"{name}.io.npz")
    image = torch.from_numpy(answers["input"]).permute(0, 3, 1, 2)  # theirs is (B, H, W, C)
    assert_equal(imported.model(image), torch.from_numpy(answers["logits"]))
    assert_all_used(imported)
    assert {option: getattr(imported.card.config, option) for option in GOOGLE[name]} == GOOGLE[name]
    assert (imported.card.preprocessing.mean, imported.card.preprocessing.resize) == ((0.5,) * 3, "squash")
