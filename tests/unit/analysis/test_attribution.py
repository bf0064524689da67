"""Saliency maps of models whose answer is known by formula, and of every family alike."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kawara.analysis.attribution import Saliency, grad_cam, occlusion, saliency, saliency_methods
from kawara.errors import ConfigError, InternalError, UnknownNameError
from kawara.models import Features, ImageModel, VisionTransformer, ViTConfig


class SmallCNN(ImageModel):
    """Two convolutions of stride 2, mean, linear head; `through_tokens` says whether the class is computed from `Features.tokens`."""

    def __init__(self, *, through_tokens: bool, num_classes: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(channels=3, image_size=(12, 20), num_classes=num_classes)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, num_classes)
        self.through_tokens = through_tokens

    def features(self, image: Tensor) -> Features:
        maps = self.stage(self.stem(image))
        tokens = maps.flatten(2).transpose(1, 2)
        pooled = tokens.mean(dim=1) if self.through_tokens else maps.mean(dim=(2, 3))
        return Features(tokens, (maps.shape[2], maps.shape[3]), 0, pooled)

    def apply_heads(self, features: Features) -> tuple[Tensor, ...]:
        return (self.head(features.pooled),)

    def layer_index(self, parameter_name: str) -> int:
        raise NotImplementedError

    no_decay = reset_head = layer_index  # type: ignore[assignment]


class OneCell(ImageModel):
    """p(class 1) = σ(gain · mean of the pixels of one cell of a 3×5 grid)."""

    def __init__(self, cell: tuple[int, int], gain: float):
        super().__init__()
        self.config = SimpleNamespace(channels=3, image_size=(12, 20), num_classes=2)
        self.cell, self.gain = cell, gain

    def features(self, image: Tensor) -> Features:
        cells = nn.functional.avg_pool2d(image, 4).mean(dim=1)
        seen = self.gain * cells[:, self.cell[0], self.cell[1]]
        return Features(cells.flatten(1)[..., None], (3, 5), 0, torch.stack([torch.zeros_like(seen), seen], dim=1))

    def apply_heads(self, features: Features) -> tuple[Tensor, ...]:
        return (features.pooled,)

    def layer_index(self, parameter_name: str) -> int:
        raise NotImplementedError

    no_decay = reset_head = layer_index  # type: ignore[assignment]


def small_vit(**options) -> VisionTransformer:
    torch.manual_seed(0)
    options = {"image_size": (12, 20), "patch_size": 4, "width": 24, "depth": 2, "heads": 3, "mlp_hidden": 32, "num_classes": 4} | options
    model = VisionTransformer(ViTConfig(**options))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def images(number: int = 2) -> Tensor:
    return torch.randn(number, 3, 12, 20, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("through_tokens", [True, False])
def test_grad_cam_of_a_linear_head_on_the_mean_is_its_weights_on_the_map(through_tokens: bool) -> None:
    """y_k = w_k · mean F, so α = w_k / (h·w)."""
    model = SmallCNN(through_tokens=through_tokens).eval()
    targets = torch.tensor([1, 3])
    with torch.no_grad():
        maps = model.features(images()).feature_map
    expected = (model.head.weight[targets][:, :, None, None] / 15 * maps).sum(dim=1).clamp_min(0)
    np.testing.assert_allclose(grad_cam(model, images(), targets), expected.detach().numpy(), atol=1e-7)


def test_grad_cam_of_a_mean_pooled_vit_reads_its_final_tokens() -> None:
    model = small_vit(class_token=False, pool="mean")
    targets = torch.tensor([1, 3])
    with torch.no_grad():
        maps = model.features(images()).feature_map
    expected = (model.head.weight[targets][:, :, None, None] / 15 * maps).sum(dim=1).clamp_min(0)
    np.testing.assert_allclose(grad_cam(model, images(), targets), expected.detach().numpy(), atol=1e-6)


def test_grad_cam_of_a_class_token_reads_what_the_last_attention_is_given() -> None:
    model = small_vit(distillation_token=True)
    block = model.blocks[-1]
    tokens = block.norm1(model.blocks[0](model.embed(model.patch_embed(images()), (3, 5)))).detach().requires_grad_()
    # The stream beside the attention is constant here: only what the attention reads is varied.
    stream = model.blocks[0](model.embed(model.patch_embed(images()), (3, 5))).detach()
    middle = stream + block.attn(tokens)
    logits = model.apply_heads(model.pool(middle + block.mlp(block.norm2(middle)), (3, 5)))
    (gradient,) = torch.autograd.grad((logits[0] + logits[1])[:, 2].sum() / 2, tokens)
    cam = (gradient[:, 2:].mean(dim=1, keepdim=True) * tokens[:, 2:]).sum(dim=2).clamp_min(0)
    found = grad_cam(model, images(), torch.tensor([2, 2]))
    np.testing.assert_allclose(found, cam.detach().reshape(2, 3, 5).numpy(), rtol=1e-4, atol=1e-6)
    assert found.max() > 0


def test_grad_cam_says_when_there_is_nothing_to_read() -> None:
    with pytest.raises(InternalError, match="no feature map of OneCell"):
        grad_cam(OneCell((1, 3), 2.0), images())


@pytest.mark.parametrize(("square_share", "reach"), [(0.2, 0), (1.0, 1)])
def test_occlusion_is_the_fall_of_the_log_probability(square_share: float, reach: int) -> None:
    model = OneCell((1, 3), gain=2.0)
    found = occlusion(model, images(), torch.tensor([1, 0]), square_share=square_share, batch_size=7)
    value = 2.0 * images()[:, :, 4:8, 12:16].mean(dim=(1, 2, 3)).numpy().astype(np.float64)
    fall = np.log(2) - np.log1p(np.exp([-value[0], value[1]]))  # painted over, both classes have probability 1/2
    expected = np.zeros((2, 3, 5))
    expected[:, 1 - reach : 2 + reach, 3 - reach : 4 + reach] = fall[:, None, None]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [small_vit(), small_vit(class_token=False, pool="mean", registers=2), SmallCNN(through_tokens=False)],
    ids=["class token", "mean and registers", "CNN"],
)
def test_every_method_gives_the_same_record(model: ImageModel) -> None:
    model.train()
    predicted = model.eval()(images()).argmax(dim=1)
    model.train()
    methods = saliency_methods(model)
    assert ("rollout" in methods) == isinstance(model, VisionTransformer)
    assert {"grad_cam", "occlusion", "random"} <= set(methods)
    for method in methods:
        found = saliency(model, images(), method)
        assert isinstance(found, Saliency)
        assert found.maps.shape == (2, 3, 5)
        assert np.isfinite(found.maps).all()
        assert found.method == method
        np.testing.assert_array_equal(found.targets, predicted)
        np.testing.assert_array_equal(saliency(model, images(), method).maps, found.maps)
    assert model.training


def test_asking_for_what_there_is_not() -> None:
    with pytest.raises(UnknownNameError, match="occlusion"):
        saliency(small_vit(), images(), "oclusion")
    with pytest.raises(UnknownNameError, match="SmallCNN"):
        saliency(SmallCNN(through_tokens=True), images(), "rollout")
    for explain in (lambda model: saliency(model, images(), "rollout"), lambda model: grad_cam(model, images())):
        with pytest.raises(ConfigError, match="no head"):
            explain(small_vit(num_classes=0))
    with pytest.raises(ConfigError, match="no head"):
        occlusion(small_vit(num_classes=0), images())
