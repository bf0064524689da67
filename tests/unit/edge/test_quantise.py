"""Layers in int8, against sums of whole numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kawara.data.preprocessing import Preprocessing
from kawara.edge.blame import fewest, rank
from kawara.edge.int8 import quantised, usual_weight_bits
from kawara.edge.quantise import QuantisedConv2d, QuantisedLinear, QuantisedPatches, observe, quantisable, replaced, twins
from kawara.edge.ranges import Range
from kawara.layers.patch import PatchProjection, cut_patches
from kawara.models import create_model
from kawara.models.interface import ImageModel


def levels(values: torch.Tensor, to: Range) -> torch.Tensor:
    return ((values.double() / to.scale).round() + to.zero_point).clamp(0, 255) - to.zero_point


@pytest.mark.parametrize("bits", [8, 7])
def test_a_linear_layer_is_a_sum_of_whole_numbers(bits: int) -> None:
    torch.manual_seed(0)
    linear, inputs, tokens = nn.Linear(24, 10), Range(-1.5, 2.0), 2 * torch.randn(3, 7, 24)
    twin = QuantisedLinear(linear, inputs, bits)
    assert twin.weight.dtype == torch.int8
    assert twin.weight.abs().max() == 2 ** (bits - 1) - 1
    sums = levels(tokens, inputs) @ twin.weight.double()
    wanted = sums * inputs.scale * twin.scales.double() + linear.bias.double()
    assert torch.allclose(twin(tokens).double(), wanted, atol=1e-5)
    assert torch.allclose(twin(tokens.clamp(-1.5, 2)), linear(tokens.clamp(-1.5, 2)), atol=0.1)
    assert not torch.allclose(twin(tokens), linear(tokens), atol=1e-3)


@torch.no_grad()
def test_the_projection_of_patches_takes_pixels_as_they_are() -> None:
    torch.manual_seed(0)
    projection, preprocessing = PatchProjection(3, 10, 4), Preprocessing((8, 12))
    pixels = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    image = preprocessing.normalise(pixels)
    twin = QuantisedPatches(projection, preprocessing, 8)
    sums = cut_patches(pixels.double(), 4) @ twin.weight.double()  # of whole numbers: no pixel is rounded
    assert torch.allclose(twin(image).double(), sums * twin.scales.double() + twin.bias.double(), atol=1e-5)
    assert 1e-5 < (twin(image) - projection(image)).abs().max() < 0.02


@pytest.mark.parametrize("rectified", [True, False])
def test_a_convolution_is_a_sum_of_whole_numbers_and_rounds_what_it_gives(rectified: bool) -> None:
    torch.manual_seed(0)
    convolution, inputs = nn.Conv2d(4, 6, 3, stride=2, padding=1), Range(-2.0, 2.0)
    outputs = Range(0.0 if rectified else -1.5, 1.5)
    maps = torch.randn(2, 4, 9, 9)
    twin = QuantisedConv2d(convolution, inputs, outputs, rectified, 8)
    sums = F.conv2d(levels(maps, inputs), twin.weight.double(), stride=2, padding=1)
    exact = sums * inputs.scale * twin.scales.double()[:, None, None] + convolution.bias.double()[:, None, None]
    exact = exact.relu() if rectified else exact
    assert (twin(maps).double() - levels(exact, outputs) * outputs.scale).abs().max() <= outputs.scale * 1.01
    assert ((twin(maps).double() - exact).abs() <= outputs.scale * 0.51)[exact.abs() < 1.4].all()


def network(name: str, **options: object) -> tuple[ImageModel, torch.Tensor]:
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, image_size=16, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        images = torch.randn(32, 3, 16, 16)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()(images)  # so that batch norms know what comes
    return model.eval(), images


@torch.no_grad()
def test_what_layers_see_is_what_goes_into_them() -> None:
    model, images = network("resnet_pico")
    names = quantisable(model)
    given: dict[str, torch.Tensor] = {}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: given.__setitem__(name, inputs[0]))
    seen = observe(model, names, images.split(16))
    model(images)
    for name in names:
        values = torch.cat(seen[name].inputs)
        assert values.min() == pytest.approx(given[name].min().item(), rel=1e-4, abs=1e-5)
        assert values.max() == pytest.approx(given[name].max().item(), rel=1e-4)
    # In these models batch norm stands between convolution and ReLU until it is folded away.
    assert not any(record.rectified for record in seen.values())


@pytest.mark.parametrize(("machine", "flags", "bits"), [
    ("x86_64", {"avx512_vnni": True}, 8), ("AMD64", {"avx_vnni": True}, 8), ("x86_64", {"avx2": True}, 7), ("aarch64", {}, 8),
])  # fmt: skip
def test_the_cpu_says_how_many_bits_its_sums_can_bear(machine: str, flags: dict, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert usual_weight_bits() == bits
    largest = 2 ** (bits - 1) - 1
    assert (2 * 255 * largest < 2**15) == (bits == 7)  # two products in int16, without VNNI


@torch.no_grad()
def test_answers_stay_near_and_do_not_depend_on_the_batch() -> None:
    for name, options in (("vit_femto_4", {"class_token": True, "pool": "class", "depth": 2}), ("resnet_pico", {})):
        model, images = network(name, **options)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        made = quantised(model, images, Preprocessing((16, 16)), weight_bits=8, progress=lambda *_: None)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        wanted = model(images).softmax(dim=-1)
        with made.in_place() as small:
            together = small(images).softmax(dim=-1)
            alone = torch.cat([small(image[None]).softmax(dim=-1) for image in images])
        difference = (together - alone).abs().amax(dim=1)
        # Not every one: torch sums in another order for another batch, and a number between two levels goes to the other one.
        assert (difference < 1e-5).float().mean() > 0.7
        assert difference.max() < 0.1
        assert 1e-5 < (together - wanted).abs().max() < 0.2
        assert [variant["chosen"] for variant in made.variants].count(True) == 1
        assert min(made.variants, key=lambda variant: variant["kl"])["chosen"]
    assert any(getattr(layer, "rectified", False) for layer in made.layers.values())


@torch.no_grad()
def plant(model: nn.Module, block: int = 1, channel: int = 5, factor: float = 3e3) -> str:
    """Make one channel of the values of attention huge, and the projection behind it take it as before: no answer changes."""
    attention = model.get_submodule(f"blocks.{block}.attn")
    row = 2 * attention.width + channel
    attention.qkv.weight[row] *= factor
    attention.qkv.bias[row] *= factor
    attention.proj.weight[:, channel] /= factor
    return f"blocks.{block}.attn.proj"


@torch.no_grad()
def test_the_layer_with_an_outlier_channel_is_to_blame() -> None:
    model, images = network("vit_femto_4", depth=3)
    before = model(images)
    planted = plant(model)
    assert torch.allclose(model(images), before, atol=1e-4)
    seen = observe(model, quantisable(model), [images])
    damages = rank(model, twins(model, seen, "minmax", 8), [images])
    assert damages[0].layer == planted
    assert damages[0].kl > 5 * damages[1].kl
    assert damages[0].snr_db < min(damage.snr_db for damage in damages[1:])


@torch.no_grad()
def test_the_ratio_of_signal_to_noise_is_in_decibels() -> None:
    model, images = network("vit_femto_4", depth=1)
    name = "blocks.0.mlp.fc2"
    layers = twins(model, observe(model, [name], [images]), "minmax", 8)
    given: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model(images)
    hook.remove()
    wanted = model.get_submodule(name)(given[0]).double()
    ratio = wanted.square().sum() / (layers[name](given[0]).double() - wanted).square().sum()
    assert rank(model, layers, [images])[0].snr_db == pytest.approx(10 * torch.log10(ratio).item(), abs=0.01)


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 6, 11])
def test_the_fewest_layers_are_found(needed: int) -> None:
    asked: list[int] = []
    assert fewest(11, lambda count: asked.append(count) or count >= needed) == needed
    assert len(asked) <= 8
    assert fewest(11, lambda _: False) is None


def test_layers_are_put_back() -> None:
    model, _ = network("vit_femto_4", depth=1)
    before = model.get_submodule("blocks.0.mlp.fc1")
    with pytest.raises(RuntimeError), replaced(model, {"blocks.0.mlp.fc1": nn.Identity()}):
        raise RuntimeError
    assert model.get_submodule("blocks.0.mlp.fc1") is before
