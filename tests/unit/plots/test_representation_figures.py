"""Figures of representations: what they show is what they were given, at the edges too, and fits its frame."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from kawara import plots
from kawara.plots.scales import DIVERGING, SEQUENTIAL, layer_ticks, short_names
from kawara.plots.style import Language, text_width_in

RNG = np.random.default_rng(0)
BLOCKS = [f"blocks.{index}" for index in range(12)]
LAYERS = [f"{block}{part}" for block in BLOCKS for part in (".attn", ".mlp", "")]
SKIPS = [f"{block}.skip{number}" for block in BLOCKS for number in (1, 2)]
STAGES = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in range(2)]
KINDS = ["embedding", *["attention", "mlp"] * 12]
WIDEST_IN = 390 / 72 / 1.12  # what a page shows unreduced on a screen of 390 px


def renders(figure: Figure) -> str:
    """Draw both ways without a warning; return the text of the SVG."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plots.to_png(figure, dpi=40).startswith(b"\x89PNG")
        svg = plots.to_svg(figure)
    return " ".join(ElementTree.fromstring(svg).itertext())


def cells(figure: Figure, index: int = 0) -> Any:
    return figure.axes[index].images[0].get_array()


Draw = Callable[[Language], Figure]
FIGURES: dict[str, Draw] = {
    "cka": lambda language: plots.cka_map(RNG.random((36, 36)), LAYERS, LAYERS, row_model="DeiT-Ti", language=language),
    "cka of two": lambda language: plots.cka_map(
        RNG.random((8, 36)), STAGES, LAYERS, row_model="a model with a very long name indeed", column_model="DeiT-Ti", language=language
    ),
    "positions": lambda language: plots.position_mosaic(RNG.uniform(-1, 1, (14, 14, 14, 14)), language=language),
    "few positions": lambda language: plots.position_mosaic(RNG.uniform(-1, 1, (2, 7, 2, 7)), language=language),
    "components": lambda language: plots.filter_tiles(
        RNG.normal(size=(28, 16, 16, 3)), explained=np.full(28, 0.02), num_filters=192, language=language
    ),
    "kernels": lambda language: plots.filter_tiles(RNG.normal(size=(96, 3, 3, 1)), kind="kernels", language=language),
    "ratios": lambda language: plots.skip_ratio_map(list(RNG.uniform(0.1, 9, (24, 197))), SKIPS, language=language),
    "ratios of registers": lambda language: plots.skip_ratio_map(
        list(RNG.uniform(0.1, 9, (24, 201))), SKIPS, num_prefix=5, language=language
    ),
    "ratios of a CNN": lambda language: plots.skip_ratio_map(
        [np.full(49 * 4**index, np.inf) for index in range(4)], [f"layer{index}.0.skip" for index in range(4)],
        num_prefix=0, language=language,
    ),
    "removal": lambda language: plots.skip_removal_bars(
        SKIPS, RNG.random(24), RNG.random(24), accuracy=RNG.random(24), accuracy_intact=0.8, language=language
    ),
    "removal without labels": lambda language: plots.skip_removal_bars(STAGES, RNG.random(8), np.full(8, np.nan), language=language),
    "localisation": lambda language: plots.localisation_grid(RNG.normal(0, 0.1, (14, 14, 14, 14)), language=language),
    "localisation of 2 by 5": lambda language: plots.localisation_grid(RNG.normal(0, 0.1, (2, 5, 2, 5)), language=language),
    "distance": lambda language: plots.localisation_by_depth(
        [(np.arange(19.0), RNG.normal(size=19))] * 4, BLOCKS[::3], [1.0, 0.5, 0.2, 0.005], language=language
    ),
    "receptive field": lambda language: plots.receptive_field_rows(
        RNG.random((4, 224, 224)), BLOCKS[::3], [30, 50, 60, 70],
        before=RNG.random((4, 224, 224)), before_distance_px=[50, 60, 70, 80], language=language,
    ),
    "receptive field of zeros": lambda language: plots.receptive_field_rows(np.zeros((1, 12, 30)), ["layer1.0"], [0.0], language=language),
    "fourier": lambda language: plots.fourier_curves([np.arange(7) / 7] * 25, list(-RNG.random((25, 7))), language=language),
    "fourier of one cell": lambda language: plots.fourier_curves([np.zeros(1)], [np.zeros(1)], language=language),
    "high frequencies": lambda language: plots.high_frequencies(-RNG.random(25), KINDS, language=language),
    "variance": lambda language: plots.variance_by_depth(RNG.random(9), ["embedding", *["block"] * 8], language=language),
    "norms": lambda language: plots.norm_histograms(
        list(np.exp(RNG.normal(3, 0.3, (12, 500)))), BLOCKS, thresholds=np.full(12, 60.0), language=language
    ),
    "norms of nothing": lambda language: plots.norm_histograms([np.zeros(3), np.array([np.nan])], BLOCKS[:2], language=language),
    "norms of one value": lambda language: plots.norm_histograms([np.full((2, 3, 3), 5.0)], BLOCKS[:1], language=language),
    "outliers": lambda language: plots.outlier_places(np.zeros((7, 10)), language=language),
}  # fmt: skip


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_fits_a_small_screen_and_its_own_frame(name: str, language: Language) -> None:
    figure = FIGURES[name](language)
    text = renders(figure)
    width_in, height_in = figure.get_size_inches()
    assert width_in <= WIDEST_IN
    assert any(word in text for word in ("の", "トークン", "スキップ")) == (language == "ja")
    if language == "en":  # a machine without Japanese fonts measures those glyphs wrongly
        drawn = figure.get_tightbbox()
        assert min(drawn.x0, drawn.y0, width_in - drawn.x1, height_in - drawn.y1) >= 0, drawn


def test_the_cka_map_shows_the_matrix_with_the_input_at_the_lower_left() -> None:
    cka = RNG.uniform(-0.1, 1, (36, 36))
    figure = plots.cka_map(cka, LAYERS, LAYERS, row_model="DeiT-Ti")
    np.testing.assert_allclose(cells(figure), np.clip(cka, 0, 1))
    axes, scale = figure.axes
    assert axes.get_ylim()[0] < axes.get_ylim()[1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layers of DeiT-Ti", "layers of DeiT-Ti")
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(index) for index in range(12)]
    assert axes.get_yticks().tolist() == list(range(2, 36, 3))
    assert (scale.get_ylim(), scale.get_ylabel()) == ((0.0, 1.0), "CKA")
    assert "no layers" in renders(plots.cka_map(np.zeros((0, 0)), [], []))


def test_the_mosaic_has_a_tile_for_every_position() -> None:
    cosine = RNG.uniform(-1, 1, (3, 4, 3, 4))
    sheet = np.ma.filled(cells(plots.position_mosaic(cosine)), np.nan)
    assert sheet.shape == (3 * 5 - 2, 4 * 6 - 2)
    for row in range(3):
        for column in range(4):
            np.testing.assert_array_equal(sheet[5 * row : 5 * row + 3, 6 * column : 6 * column + 4], cosine[row, column])
    large = plots.position_mosaic(np.zeros((14, 14, 14, 14)))
    assert [label.get_text() for label in large.axes[0].get_xticklabels()] == ["1", "3", "5", "7", "9", "11", "13"]


def test_filters_are_stretched_each_to_its_own_range() -> None:
    tiles = RNG.normal(size=(9, 4, 4, 3)) * np.array([1, 100, 0.01, 1, 1, 1, 1, 1, 0])[:, None, None, None] + 5
    sheet = np.asarray(cells(plots.filter_tiles(tiles, explained=np.full(9, 0.1), num_filters=20)))
    step = sheet.shape[0] // 2
    for index, tile in enumerate(tiles):
        row, column = divmod(index, 7)
        shown = sheet[row * step : row * step + 32 : 8, column * step : column * step + 32 : 8]
        spread = tile.max() - tile.min()
        np.testing.assert_allclose(shown, (tile - tile.min()) / (spread or 1.0), atol=1e-12)
    assert "9 of 20 components, 90 % of the variance" in renders(plots.filter_tiles(tiles, explained=np.full(9, 0.1), num_filters=20))


def test_ratios_are_logarithmic_with_the_class_token_apart() -> None:
    ratios = [np.concatenate([[4.0], np.full(196, 0.5)]), np.concatenate([[np.inf], np.full(196, 1.0)])]
    figure = plots.skip_ratio_map(ratios, ["blocks.0.skip1", "blocks.0.skip2"])
    attention, mlp = (np.ma.filled(cells(figure, index), np.nan)[0] for index in (0, 1))
    assert (attention[0], attention[-1], mlp[0], mlp[-1]) == (2.0, -1.0, 3.0, 0.0)
    assert figure.axes[0].get_title(loc="left") == "over attention"
    assert "no skip connections" in renders(plots.skip_ratio_map([], []))


def test_removal_draws_accuracy_where_there_are_labels() -> None:
    shares = np.linspace(0, 1, 24)
    upper = plots.skip_removal_bars(SKIPS, shares, shares, accuracy=shares / 2, accuracy_intact=0.8).axes[0]
    assert sorted(bar.get_height() for bar in upper.patches) == pytest.approx(sorted(50 * shares))
    assert "images right (%)" in [text.get_text() for text in upper.texts]
    upper = plots.skip_removal_bars(SKIPS, shares, shares).axes[0]
    assert sorted(bar.get_height() for bar in upper.patches) == pytest.approx(sorted(100 * shares))
    assert "answers unchanged (%)" in [text.get_text() for text in upper.texts]


def test_localisation_frames_the_own_place_of_corners_edges_and_centre() -> None:
    figure = plots.localisation_grid(RNG.random((14, 14, 14, 14)))
    frames = [axes.patches[0].get_xy() for axes in figure.axes[:9]]  # type: ignore[attr-defined]
    assert [(y + 0.5, x + 0.5) for x, y in frames] == [(row, column) for row in (0, 7, 13) for column in (0, 7, 13)]


def test_receptive_fields_are_decades_below_the_strongest_pixel() -> None:
    gradient = np.full((1, 8, 8), 1e-9)
    gradient[0, 4, 4], gradient[0, 0, 0] = 5.0, 0.05
    figure = plots.receptive_field_rows(gradient, ["blocks.3"], [17.3])
    shown = np.asarray(cells(figure))
    assert (shown[4, 4], shown[0, 0], shown[2, 2]) == pytest.approx((0.0, -2.0, -3.0))
    assert figure.axes[0].get_xlabel() == "17 px"


def test_norms_are_shares_of_each_block_with_their_threshold() -> None:
    norms = [np.array([1.0] * 90 + [100.0] * 10), np.full(50, 10.0)]
    figure = plots.norm_histograms(norms, BLOCKS[:2], thresholds=[50.0, 20.0])
    rows = 10 ** np.ma.filled(cells(figure), -np.inf)
    np.testing.assert_allclose(rows.sum(axis=1), 1.0)
    assert sorted(rows[0][rows[0] > 0]) == pytest.approx([0.1, 0.9])
    marks = figure.axes[0].collections[0].get_segments()  # type: ignore[attr-defined]
    assert [10 ** mark[0][0] for mark in marks] == pytest.approx([50.0, 20.0])


def test_names_keep_what_tells_them_apart() -> None:
    assert short_names(BLOCKS[:3]) == ["0", "1", "2"]
    assert short_names(["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0"]) == ["0.0", "0.1", "1.0"]
    assert short_names(["conv1", "layer1.0"]) == ["conv1", "layer1.0"]
    assert short_names(["blocks.3"]) == ["blocks.3"]
    assert layer_ticks(LAYERS, max_ticks=6) == (list(range(2, 36, 6)), ["0", "2", "4", "6", "8", "10"])
    assert all(text_width_in(label, 8.5) <= 0.61 for label in layer_ticks(["a" * 40, "b" * 40])[1])


def test_scales_are_ordered_by_lightness() -> None:
    weights = (0.299, 0.587, 0.114)
    amount = SEQUENTIAL(np.linspace(0, 1, 50))[:, :3] @ weights
    assert (np.diff(amount) < 0).all()
    sign = DIVERGING(np.linspace(0, 1, 51))[:, :3] @ weights
    assert (np.diff(sign[:26]) > 0).all()
    assert (np.diff(sign[25:]) < 0).all()
