"""Networks rewritten so that they quantise better compute the same: shown in float64, where nothing hides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kawara.edge.folding import fold_batch_norms, smooth, smoothable, smoothing_factors
from kawara.edge.quantise import observe, quantisable
from kawara.models import create_model
from kawara.models.interface import ImageModel


def drawn(name: str, **options: object) -> tuple[ImageModel, torch.Tensor]:
    """A model of random weights and norms in float64, and images."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, image_size=32, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model, torch.randn(4, 3, 32, 32, dtype=torch.float64)


@pytest.mark.parametrize("name", ["vit_femto_4", "convnext_ronto_1"])
@torch.no_grad()
def test_smoothing_changes_no_answer_and_evens_out_channels(name: str) -> None:
    model, images = drawn(name)
    layers = smoothable(model)
    first = next(iter(layers))
    layers[first][0].weight[3] *= 50
    wanted = model(images)
    largest = {layer: seen.largest for layer, seen in observe(model, layers, [images]).items()}
    spread = largest[first].max() / largest[first].median()
    smooth(model, largest)
    assert torch.allclose(model(images), wanted, rtol=1e-9, atol=1e-9)
    after = observe(model, layers, [images])[first].largest
    assert after.max() / after.median() < 0.3 * spread


def test_factors_are_those_of_the_paper() -> None:
    largest, weight = torch.tensor([4.0, 1.0]), torch.tensor([[1.0, -2.0], [0.25, 0.5]])
    assert torch.allclose(smoothing_factors(largest, weight), torch.tensor([2.0, 0.5**0.5]))
    assert torch.allclose(smoothing_factors(largest, weight, alpha=1.0), largest)


@pytest.mark.parametrize(("name", "left"), [("resnet_pico", 0), ("vit_femto_conv_4", 0), ("regnety_400mf", 0)])
@torch.no_grad()
def test_batch_norms_become_part_of_their_convolutions(name: str, left: int) -> None:
    model, images = drawn(name)
    wanted = model(images)
    fold_batch_norms(model, images[:1])
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == left
    assert torch.allclose(model(images), wanted, rtol=1e-9, atol=1e-9)


def test_stem_and_head_stay_in_float() -> None:
    vit, _ = drawn("vit_femto_4", depth=1)
    assert sorted(quantisable(vit)) == [f"blocks.0.{layer}" for layer in ("attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2")]
    resnet, _ = drawn("resnet_pico")
    names = quantisable(resnet)
    assert "layer1.0.conv1" in names
    assert not {"conv1", "fc"} & set(names)
    regnet, _ = drawn("regnety_400mf")
    assert not any("conv2" in name or ".se." in name for name in quantisable(regnet))  # groups, and squeeze-and-excitation
