"""Figures about attention and attribution: labelled with units, inside their edges, true to the numbers they are given."""

from __future__ import annotations

import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from kawara import plots
from kawara.plots.lines import MAX_LINES, Line
from kawara.plots.overlay import overlay, thumbnail
from kawara.plots.robustness import drop_name
from kawara.plots.saliency import MapWithScore, method_name
from kawara.plots.style import CLAY, Language

RNG = np.random.default_rng(0)
METHODS = ("rollout", "gradient_rollout", "grad_cam", "occlusion")
LANGUAGES: tuple[Language, ...] = ("en", "ja")


def photo(height: int = 224, width: int = 224, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def written(figure: Figure) -> list[Text]:
    """Everything written but the tick labels, of which some are never shown."""
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        legend = axes.get_legend()
        texts += [axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title, *axes.texts, *(legend.get_texts() if legend else ())]  # type: ignore[attr-defined]
    return [text for text in texts if text.get_text() and text.get_visible()]


def renders(figure: Figure) -> str:
    """Draw both ways without a warning, every text inside the figure; return the text of the SVG."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plots.to_png(figure, dpi=40).startswith(b"\x89PNG")
        svg = plots.to_svg(figure)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for text in written(figure):
        if text.get_text().isascii():  # others are measured wrongly without a Japanese font
            box, edge = text.get_window_extent(renderer), figure.bbox
            assert min(box.x0, box.y0, edge.width - box.x1, edge.height - box.y1) > -2, text
    return " ".join(ElementTree.fromstring(svg).itertext())


@pytest.mark.parametrize(("num_blocks", "num_heads", "language"), [(1, 1, "en"), (12, 3, "ja"), (32, 16, "en")])
def test_attention_over_depth_for_models_of_any_size(num_blocks: int, num_heads: int, language: Language) -> None:
    distance = 100 * RNG.random((num_blocks, num_heads))
    profile = (distance / 20, RNG.random(num_blocks), RNG.random((num_blocks, num_heads)))
    other = (distance[:1] / 30, RNG.random(1), RNG.random((1, num_heads)))
    renders(plots.attention_distance({"one": distance}, uniform_px=116.49, language=language))
    renders(plots.attention_distance({"one": distance, "another with a long name": distance[:1]}, language=language))
    renders(plots.attention_profile({"one": profile}, uniform_nats=5.28, language=language))
    renders(plots.attention_profile({"one": profile, "other": other}, language=language))


def test_attention_distance_shows_every_head_their_mean_and_uniform_attention() -> None:
    distance = np.array([[10.0, 50.0], [60.0, 100.0], [90.0, 110.0]])
    figure = plots.attention_distance({"model": distance}, uniform_px=116.49)
    axes = figure.axes[0]
    heads, mean, uniform = axes.get_lines()
    np.testing.assert_allclose(heads.get_xydata(), [[1, 10], [1, 50], [2, 60], [2, 100], [3, 90], [3, 110]])
    np.testing.assert_allclose(mean.get_xydata(), [[1, 30], [2, 80], [3, 100]])
    np.testing.assert_allclose(uniform.get_ydata(), 116.49)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("block (1 is the first)", "mean attention distance (px)")
    assert axes.get_ylim()[0] == 0
    assert "uniform attention, 116 px" in renders(figure)


def test_two_models_differ_in_colour_and_in_mark() -> None:
    distance = 100 * RNG.random((4, 3))
    lines = plots.attention_distance({"ViT": distance, "other": distance}).axes[0].get_lines()
    assert {(line.get_color() if line.get_linestyle() != "None" else line.get_markerfacecolor(), line.get_marker()) for line in lines} == {
        ("#34597a", "o"),
        ("#c4572c", "s"),
    }


def test_no_attention_layers_and_single_heads() -> None:
    assert "no attention layers" in renders(plots.attention_distance({"CNN": np.empty((0, 0))}))
    single = (np.ones((3, 1)), np.full(3, np.nan), np.zeros((3, 1)))  # one head agrees with no other
    assert "no attention layers" in renders(plots.attention_profile({"one head": single}))


@pytest.mark.parametrize(
    ("num_blocks", "num_heads", "size", "language"),
    [(1, 1, (28, 28), "en"), (12, 3, (112, 208), "ja"), (24, 16, (224, 224), "en"), (2, 2, (300, 90), "en")],
)
def test_attention_grids(num_blocks: int, num_heads: int, size: tuple[int, int], language: Language) -> None:
    maps = RNG.random((num_blocks, num_heads, 7, 13))
    figure = plots.attention_grid(photo(*size), maps, range(1, num_blocks + 1), title="class token, $x$", language=language)
    text = renders(figure)
    assert "class token, $x$" in text
    assert ("own scale" if language == "en" else "個別の尺度") in text
    assert len(plots.to_svg(figure)) < 4_000_000


def test_a_grid_has_blocks_as_columns_and_heads_as_rows() -> None:
    maps = np.zeros((3, 2, 2, 2))
    maps[2, 1, 0, 0] = 1  # block 3, head 2: the upper left cell
    figure = plots.attention_grid(np.full((20, 20, 1), 255, np.uint8), maps, [1, 2, 12])
    cells = np.asarray(figure.axes[1].get_images()[0].get_array())
    tinted = (cells != 255).any(axis=2).nonzero()
    rows, columns = (np.unique(found) for found in tinted)
    side = (cells.shape[0] - 6) // 2
    assert (rows.min(), rows.max() + 1) == (side + 6, side + 6 + side // 2)
    assert (columns.min(), columns.max() + 1) == (2 * (side + 6), 2 * (side + 6) + side // 2)
    assert [text.get_text() for text in figure.texts][:5] == ["block 1", "block 2", "block 12", "head 1", "head 2"]


def test_an_overlay_shows_each_cell_where_it_is() -> None:
    values = np.zeros((2, 4))
    values[1, 2] = 5.0
    picture = overlay(np.full((40, 80, 3), 255, np.uint8), values)
    expected = np.full((40, 80, 3), 255)
    expected[20:, 40:60] = np.rint(255 * (0.12 + 0.88 * np.array(to_rgb(CLAY))))
    np.testing.assert_array_equal(picture, expected)
    for empty in (np.ones((2, 2)), np.full((2, 2), np.nan)):
        assert (overlay(np.zeros((8, 8, 3), np.uint8), empty) == np.rint(0.35 * 255)).all()


def test_thumbnails_shrink_smoothly_and_grow_pixel_by_pixel() -> None:
    grown = thumbnail(np.array([[[0], [255]]], np.uint8), 8)
    assert grown.shape == (4, 8, 3)
    assert (grown[:, :4] == 0).all()
    assert (grown[:, 4:] == 255).all()
    stripes = np.tile(np.array([[[0], [255]]], np.uint8), (64, 32, 3))
    assert abs(int(thumbnail(stripes, 16)[8, 8, 0]) - 127) < 10


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_saliency_row_says_of_each_map_whether_to_believe_it(language: Language) -> None:
    verdicts = [(True, True), (True, False), (False, True), (False, False)]
    maps = [MapWithScore(method, RNG.random((7, 13)), 0.125, 0.875, *verdict) for method, verdict in zip(METHODS, verdicts)]
    figure = plots.saliency_row(photo(112, 208), maps, 0.5, title="tabby: 98.7 %", language=language)
    text = renders(figure)
    assert text.count("0.12") == text.count("0.88") == 4
    for method in METHODS:
        assert method_name(method, language) in text
    if language == "en":
        for verdict in ("beats random both ways", "only deletion beats random", "only insertion beats random", "no better than random"):
            assert text.count(verdict) == 1
        assert "random orders 0.50" in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_deletion_and_insertion_curves(language: Language) -> None:
    shares = np.linspace(0, 1, 15)
    random = np.linspace(0.8, 0.1, 15) + 0.05 * RNG.random((5, 15))
    figure = plots.deletion_insertion(shares, dict.fromkeys(METHODS, (0.8 - 0.7 * shares, shares)), random, language=language)
    renders(figure)
    deletion, insertion = figure.axes
    np.testing.assert_allclose(deletion.get_lines()[0].get_xydata(), np.stack([100 * shares, 80 - 70 * shares], axis=1))
    np.testing.assert_allclose(deletion.get_lines()[-1].get_ydata(), 100 * random.mean(axis=0))
    np.testing.assert_allclose(insertion.get_lines()[-1].get_ydata(), 100 * random.mean(axis=0)[::-1])
    looks = {(line.get_color(), line.get_marker()) for line in deletion.get_lines()}
    assert len(looks) == MAX_LINES


def test_randomisation_counts_a_constant_map_as_unlike() -> None:
    figure = plots.randomisation([0, 1, 2], {"grad_cam": np.array([[1.0, 1.0], [0.5, np.nan], [np.nan, np.nan]])})
    np.testing.assert_allclose(figure.axes[0].get_lines()[0].get_ydata(), [1, 0.25, 0])
    assert "rank correlation" in renders(figure)


@pytest.mark.parametrize(
    ("unit", "language"), [("share_of_tiles", "ja"), ("tiles_per_side", "en"), ("share_of_side", "en"), ("deviation", "ja")]
)
def test_robustness_with_any_unit_and_any_number_of_lines(unit: str, language: Language) -> None:
    strengths = np.array([1, 2, 4, 8, 14.0]) if unit == "tiles_per_side" else np.linspace(0, 0.9, 5)
    lines = [
        Line(f"model number {number}", strengths, np.linspace(0.9, 0.1, 5), None if number % 2 else np.full(5, 0.05)) for number in range(5)
    ]
    for count in (0, 5):
        renders(plots.robustness("noise", unit, lines[:count], chance=0.1, language=language))


def test_robustness_draws_percent_and_its_spread() -> None:
    lines = [
        Line(drop_name(name), np.array([0, 0.5]), np.array([0.9, 0.4]), np.array([np.nan, 0.1])) for name in ("drop_random", "drop_salient")
    ]
    figure = plots.robustness("drop_random", "share_of_tiles", lines)
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.get_lines()[0].get_xydata(), [[0, 90], [50, 40]])
    band = axes.collections[0].get_paths()[0].vertices
    assert {(50.0, 30.0), (50.0, 50.0), (0.0, 90.0)} <= {tuple(np.round(point, 6)) for point in band.tolist()}
    text = renders(figure)
    assert all(words in text for words in ("Tiles dropped", "tiles painted black (%)", "images right (%)", "random tiles", "salient tiles"))
