"""Features of a whole split are those of its images one by one, and nothing of the model or of autograd is left changed."""

from __future__ import annotations

import pytest
import torch

from kawara.analysis.features import extract
from kawara.data.loading import EvalLoader
from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import load_data
from kawara.data.synthetic import list_shapes
from kawara.errors import UserError
from kawara.models import create_model

PREPROCESSING = Preprocessing((16, 16), crop_fraction=1.0)


@pytest.fixture(scope="module")
def split():
    return load_data(list_shapes(50), PREPROCESSING, hold_out=False).splits["all"]


def make_model(**options):
    torch.manual_seed(0)
    return create_model("vit_femto_4", image_size=16, num_classes=0, **options)


def loader(split, batch_size=16):
    return EvalLoader(split, PREPROCESSING, batch_size=batch_size, workers=1)


@pytest.mark.parametrize("options", [{}, {"pool": "mean"}, {"distillation_token": True}])
@pytest.mark.parametrize("batch_size", [16, 64])
def test_features_are_those_of_the_images_one_by_one(split, options, batch_size):
    model = make_model(**options).eval()
    found = extract(model, loader(split, batch_size))
    with torch.no_grad():
        alone = [model.features(PREPROCESSING.normalise(PREPROCESSING.place(split.store[i])[None])) for i in range(len(split))]
    torch.testing.assert_close(found.pooled, torch.cat([features.pooled for features in alone]), atol=2e-6, rtol=0)
    assert found.labels.tolist() == split.labels.tolist()
    assert found.pooled.shape == (50, 64)
    if "distillation_token" in options:
        second = torch.cat([features.distillation for features in alone])
        torch.testing.assert_close(found.joined, torch.cat([found.pooled, second], dim=1), atol=2e-6, rtol=0)
    else:
        assert found.distillation is None
        assert found.joined is found.pooled


def test_a_model_in_training_is_run_in_evaluation_mode_and_given_back_as_it_was(split):
    model = make_model(dropout=0.5, stochastic_depth=0.5).train()
    model.blocks[0].eval()  # a frozen part
    before = {name: module.training for name, module in model.named_modules()}
    first, second = extract(model, loader(split)), extract(model, loader(split))
    assert torch.equal(first.pooled, second.pooled)
    assert {name: module.training for name, module in model.named_modules()} == before


def test_a_head_can_be_trained_on_the_features(split):
    found = extract(make_model(), loader(split))
    assert not found.pooled.requires_grad
    head = torch.nn.Linear(64, 3)
    torch.nn.functional.cross_entropy(head(found.pooled), found.labels % 3).backward()
    assert head.weight.grad is not None
    assert head.weight.grad.abs().sum() > 0


def test_autocast_gives_float32_close_to_the_exact(split):
    model = make_model()
    exact, half = extract(model, loader(split)), extract(model, loader(split), torch.bfloat16)
    assert half.pooled.dtype == torch.float32
    assert not torch.equal(half.pooled, exact.pooled)
    torch.testing.assert_close(half.pooled, exact.pooled, atol=0.1, rtol=0)


def test_progress_ends_with_all_images(split):
    seen = []
    extract(make_model(), loader(split), progress=lambda done, total, detail: seen.append((done, total)))
    assert seen == [(16, 50), (32, 50), (48, 50), (50, 50)]


def test_features_that_are_not_finite_name_the_image(split):
    model = make_model()
    with torch.no_grad():
        model.norm.bias[3] = float("nan")
    with pytest.raises(UserError, match=split.keys[0].replace("[", r"\[")):
        extract(model, loader(split))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_features(split):
    model = make_model()
    expected = extract(model, loader(split))
    found = extract(model.cuda(), EvalLoader(split, PREPROCESSING, batch_size=16, device="cuda"))
    assert found.pooled.device.type == "cpu"
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-3, rtol=0)
