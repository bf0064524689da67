"""What the papers say of trained ViTs, seen in the released DeiT-Ti: positions, filters, skip connections, receptive fields."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kawara.analysis.filters import first_filters
from kawara.analysis.localisation import localisation
from kawara.analysis.outliers import token_norms
from kawara.analysis.positions import position_similarity
from kawara.analysis.receptive_field import branches, receptive_fields
from kawara.analysis.similarity import cka_within
from kawara.analysis.skip import skip_ratios
from kawara.data.decode import decode
from kawara.data.preprocessing import Preprocessing
from kawara.models import ImageModel, ViTConfig, build

SHARED = Path(__file__).parents[2].parent / "shared"
WEIGHTS = SHARED / "weights" / "deit_tiny_patch16_224_in1k.safetensors"
PHOTOS = SHARED / "data" / "imagenet_samples"

pytestmark = pytest.mark.skipif(not (WEIGHTS.is_file() and PHOTOS.is_dir()), reason=f"the weights and photos are not at {SHARED}")


@pytest.fixture(scope="module")
def model() -> ImageModel:
    model = build(ViTConfig()).eval()
    model.load_state_dict(load_file(WEIGHTS))
    return model


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    preprocessing = Preprocessing(crop_fraction=0.9)
    files = sorted(PHOTOS.glob("*.JPEG"))[::50]
    return preprocessing.normalise(torch.stack([preprocessing.place(decode(file.read_bytes(), file.name)) for file in files]))


def test_positions_resemble_their_row_and_column(model):
    found = position_similarity(model)
    assert found.same_row > found.elsewhere + 0.3
    assert found.same_column > found.elsewhere + 0.3


def test_few_components_hold_much_of_the_patch_embedding(model):
    explained = first_filters(model).explained
    assert explained is not None
    assert 0.4 < explained.sum() < 0.6
    assert (np.diff(explained) <= 0).all()


def test_the_class_token_is_carried_first_the_patches_later(model, photos):
    found = skip_ratios(model, [photos])
    class_token, patches = found.prefix[:, 0], found.patches
    assert class_token[2:14].mean() > 2 * patches[2:14].mean()
    assert patches[-4:].mean() > class_token[-4:].mean()


def test_layers_grow_apart_step_by_step(model, photos):
    cka = cka_within(model, [photos], layers=[f"blocks.{index}" for index in range(12)]).cka
    assert (np.diff(cka[0]) < 0.01).all()
    assert np.diag(cka, 1).min() > 0.85
    assert cka[0, -1] < 0.4


def test_the_receptive_field_grows_and_keeps_its_peak_on_the_stream(model, photos):
    blocks = ["blocks.0", "blocks.5", "blocks.11"]
    after = receptive_fields(model, [photos[:4]], places=blocks)
    before = receptive_fields(model, [photos[:4]], places=branches(model, blocks))
    assert (np.diff(after.mean_distance_px) > 5).all()
    assert (after.share_within(8) > 1.5 * before.share_within(8)).all()


def test_tokens_keep_their_place_and_their_norms_stay_together(model, photos):
    (first,) = localisation(model, [photos], layers=["blocks.0"])
    assert first.share_at_home > 0.3  # 1 of 196 by chance; all of them with 400 photos
    assert token_norms(model, [photos[:8]]).shares.max() < 0.05
