"""Position cosines: closed form for sin-cos tables, loops for learned ones."""

import numpy as np
import pytest
import torch

from kawara.analysis.positions import compare_positions, position_similarity
from kawara.errors import ConfigError
from kawara.layers.position import resize_positions
from kawara.models import create_model


def test_sincos_cosines_depend_on_the_offset_alone():
    model = create_model("vit_tiny_16", num_classes=2, image_size=(48, 80), position="sincos")
    found = position_similarity(model)
    frequencies = 10_000.0 ** -(np.arange(48) / 48)
    expected = np.zeros((3, 5, 3, 5))
    for i, j, p, q in np.ndindex(expected.shape):
        expected[i, j, p, q] = (np.cos((i - p) * frequencies) + np.cos((j - q) * frequencies)).mean() / 2
    np.testing.assert_allclose(found.cosine, expected, atol=1e-6)


def test_learned_tables_without_their_prefix(vit):
    found = position_similarity(vit)
    table = vit.pos_embed.detach().double().numpy()[0, 1:]
    for i, j, p, q in np.ndindex(found.cosine.shape):
        a, b = table[i * 2 + j], table[p * 2 + q]
        assert found.cosine[i, j, p, q] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-9)
    with torch.no_grad():
        vit.pos_embed[:, 0] += 100
    np.testing.assert_array_equal(position_similarity(vit).cosine, found.cosine)


def test_kinds_of_pairs():
    # Row r is e_r, column c is e_{2+c}: same row or column gives 1/2, neither gives 0.
    table = torch.tensor([[1, 0, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 1, 0, 0, 1]])
    found = compare_positions(table.float(), (2, 3))
    assert (found.same_row, found.same_column, found.elsewhere) == pytest.approx((0.5, 0.5, 0.0), abs=1e-12)
    assert np.isnan(compare_positions(table[:2].float(), (1, 2)).same_column)


def test_another_grid_is_the_resized_table(vit):
    found = position_similarity(vit, (5, 7))
    table = resize_positions(vit.pos_embed, (3, 2), (5, 7), num_prefix=1, method=vit.config.position_resize)
    np.testing.assert_allclose(found.cosine, compare_positions(table[0, 1:], (5, 7)).cosine)
    assert found.cosine.shape == (5, 7, 5, 7)
    np.testing.assert_allclose(np.einsum("ijij->ij", found.cosine), 1.0)


def test_models_without_a_table(cnn):
    for model in (cnn, create_model("vit_tiny_16", num_classes=2, position="none")):
        with pytest.raises(ConfigError, match="no position embedding"):
            position_similarity(model)
