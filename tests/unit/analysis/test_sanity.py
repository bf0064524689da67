"""Randomised models, and maps that must not survive it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from kawara.analysis.attribution import saliency
from kawara.analysis.faithfulness import pointing_game
from kawara.analysis.sanity import randomisation_test, randomise_from_top, rank_correlation
from kawara.data.synthetic import shape_image, shape_mask
from kawara.errors import ConfigError
from kawara.models import VisionTransformer, ViTConfig


def small_vit(**options) -> VisionTransformer:
    torch.manual_seed(0)
    options = {"image_size": (32, 32), "patch_size": 4, "width": 24, "depth": 3, "heads": 3, "mlp_hidden": 32, "num_classes": 4} | options
    model = VisionTransformer(ViTConfig(**options))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_layers_become_noise_from_the_top_and_the_model_itself_stays() -> None:
    model = small_vit()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for count in range(model.num_layers + 2):
        noisy = randomise_from_top(model, count)
        for name, parameter in noisy.named_parameters():
            randomised = model.layer_index(name) >= model.num_layers - count + 1
            assert torch.equal(parameter, before[name]) != randomised, (name, count)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_noise_has_the_scale_of_what_it_replaces_and_goes_on_from_layer_to_layer() -> None:
    model = small_vit(width=96)
    nn.init.constant_(model.blocks[2].norm1.weight, 1.5)
    one, all_of_them = randomise_from_top(model, 2), randomise_from_top(model, 5)
    weight = one.blocks[2].attn.qkv.weight
    assert weight.std().item() == pytest.approx(0.3, rel=0.05)
    assert not torch.equal(weight, model.blocks[2].attn.qkv.weight)
    assert torch.equal(weight, all_of_them.blocks[2].attn.qkv.weight)
    assert torch.equal(one.blocks[2].norm1.weight, model.blocks[2].norm1.weight)  # constant, so it has no deviation
    assert not torch.equal(weight, randomise_from_top(model, 2, seed=1).blocks[2].attn.qkv.weight)
    with pytest.raises(ConfigError, match="0 to 5"):
        randomise_from_top(model, 6)


def test_rank_correlation_is_spearmans() -> None:
    first, second = np.random.default_rng(0).integers(0, 9, (2, 4, 5, 6)).astype(float)
    second[3] = 1
    found = rank_correlation(first, second)
    np.testing.assert_allclose(found[:3], [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first[:3], second[:3])])
    assert np.isnan(found[3])


def test_maps_change_with_the_weights_and_a_map_that_does_not_is_seen() -> None:
    image = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([0, 1, 2, 3])
    for method in ("rollout", "gradient_rollout", "grad_cam", "occlusion"):
        found = randomisation_test(small_vit(), lambda model, method=method: saliency(model, image, method, targets).maps, [0, 2, 3, 5])
        np.testing.assert_allclose(found[0], 1)
        # NaN is a map that has become constant, as Grad-CAM's does where all evidence is against the class.
        assert np.nanmean(np.abs(found[-1])) < 0.5, method
        assert not (found[1:] > 0.999).any(), method
    edges = image.diff(dim=2).abs().mean(dim=1).numpy()  # knows nothing of any model
    np.testing.assert_allclose(randomisation_test(small_vit(), lambda model: edges, [1, 5]), 1)


COLORS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]) - 0.5


def planted(number: int, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Grey discs on grey grounds; what tells the classes is a tint that the disc alone has."""
    labels = torch.arange(number) % len(COLORS)
    grey = np.stack([shape_image("circle", index, seed=seed).mean(axis=2) / 255 for index in range(number)])
    masks = np.stack([shape_mask("circle", index, seed=seed) for index in range(number)])
    image = torch.from_numpy(grey)[:, None] + 0.5 * COLORS[labels][:, :, None, None] * torch.from_numpy(masks)[:, None]
    return 4 * image.float() - 2, labels, masks


@pytest.mark.slow
def test_a_trained_model_points_at_the_planted_object_and_random_ones_do_not() -> None:
    config = ViTConfig(
        image_size=(32, 32), patch_size=4, width=64, depth=2, heads=2, mlp_hidden=128, num_classes=6, class_token=False, pool="mean"
    )
    torch.manual_seed(0)
    model = VisionTransformer(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    images, labels, _ = planted(900, seed=1)
    for _ in range(300):
        chosen = torch.randint(len(images), (32,))
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    images, labels, masks = planted(120, seed=2)
    model.eval()
    assert (model(images).argmax(dim=1) == labels).float().mean() > 0.97
    random_models = [randomise_from_top(model, 4, seed=seed) for seed in range(20)]
    for method in ("gradient_rollout", "grad_cam"):
        trained = pointing_game(saliency(model, images, method, labels).maps, masks)
        assert trained.hits.mean() > 0.9, method
        at_random = np.mean([pointing_game(saliency(other, images, method, labels).maps, masks).hits.mean() for other in random_models])
        assert at_random == pytest.approx(trained.chance.mean(), abs=0.15), method
        explain = lambda changed, method=method: saliency(changed, images, method, labels).maps  # noqa: E731
        similar = np.nanmean(randomisation_test(model, explain, [0, 1, 2, 4]), axis=1)
        assert similar[0] == 1
        assert similar[1:].max() < 0.9, (method, similar)
        assert abs(similar[-1]) < 0.3, (method, similar)
