"""Planted shapes and where they are."""

from __future__ import annotations

import numpy as np
import pytest

from kawara.data.synthetic import SHAPE_NAMES, shape_image, shape_mask


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_a_mask_is_where_the_shape_is(shape: str) -> None:
    """Their colours differ by 50 levels of luma at least, and the shape has no waves."""
    for number in range(5):
        luma = shape_image(shape, number, size=(48, 64), seed=3) @ (0.299, 0.587, 0.114)
        mask = shape_mask(shape, number, size=(48, 64), seed=3)
        assert mask.shape == (48, 64)
        inside, outside = luma[mask], luma[~mask]
        assert abs(inside.mean() - outside.mean()) > 30
        lower, upper = np.percentile(inside, [25, 75])
        assert upper - lower < 12  # one colour and the noise, but for the soft edge


def test_a_disc_has_the_area_of_its_radius() -> None:
    for number in range(5):
        mask = shape_mask("circle", number, size=64)
        rows, columns = np.nonzero(mask)
        radius = (rows.max() - rows.min() + 1) / 2
        assert 0.22 * 64 - 1 < radius < 0.36 * 64 + 1
        assert mask.sum() == pytest.approx(np.pi * radius**2, rel=0.08)
        assert columns.max() - columns.min() == pytest.approx(rows.max() - rows.min(), abs=1)
