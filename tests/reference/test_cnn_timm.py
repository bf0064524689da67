"""Parity of the CNNs with timm: its own small models, read as anyone's checkpoint, its own answers within 1e-5 of the largest value."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kawara.models import ConvNeXtConfig, RegNetConfig, ResNetConfig, build
from kawara.models.regnet import stages_by_rule
from kawara.weights.convnets import TIMM_CONVNETS
from kawara.weights.foreign import Hints, RawCheckpoint

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"the stored answers are not at {REFERENCE}")

# What the models were made with, for the configuration that is read off their shapes.
DEPTHS, WIDTHS = stages_by_rule(w0=8, wa=8.0, wm=2.0, depth=10, group_width=8)
CASES = {
    "timm_resnet18_narrow": ResNetConfig(num_classes=10, block="basic", expansion=1, depths=(1, 1, 1, 1), widths=(8, 16, 32, 64)),
    "timm_resnet50_narrow": ResNetConfig(num_classes=10, depths=(2, 1, 1, 1), widths=(8, 16, 24, 32)),
    "timm_seresnet_narrow": ResNetConfig(num_classes=10, depths=(1, 1, 1, 1), widths=(8, 16, 24, 32), squeeze_reduction=16),
    "timm_regnety_narrow": RegNetConfig(num_classes=10, depths=DEPTHS, widths=WIDTHS, group_width=8),
    "timm_convnext_narrow": ConvNeXtConfig(num_classes=10, depths=(1, 1, 2, 1), widths=(16, 24, 32, 48)),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits(name: str) -> None:
    tensors = load_file(REFERENCE / f"{name}.safetensors")
    answers = load_file(REFERENCE / f"{name}.io.safetensors")
    checkpoint = RawCheckpoint(f"{name}.safetensors", tensors)
    assert TIMM_CONVNETS.recognises(checkpoint)
    foreign = TIMM_CONVNETS.read(checkpoint, Hints())
    assert foreign.config == CASES[name]
    assert {(fate.what, fate.how) for fate in foreign.fates} == {("used", "as it is")}
    model = build(foreign.config).eval()
    model.load_state_dict(foreign.state)
    logits = model(answers["input"])
    error = (logits - answers["logits"]).abs().max() / answers["logits"].abs().max()
    assert error <= 1e-5, f"relative error {error:.2e}"
