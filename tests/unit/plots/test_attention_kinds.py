"""The figures of the three kinds of attention: every weight is drawn, in both languages."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from kawara.plots.attention_kinds import attention_kinds, channel_weights, weight_maps


@pytest.mark.parametrize(("language", "words"), [("en", "Spatial attention"), ("ja", "空間アテンション")])
def test_the_schematic_scales_sheets_and_frames_queries(language, words):
    figure = attention_kinds(language=language)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert any(words in text for text in texts)
    cells = [[patch for patch in axes.patches if isinstance(patch, Rectangle)] for axes in figure.axes]
    assert [len(each) for each in cells] == [5 + 5 * 16, 16 + 5 * 16, 256 + 2 * 16 + 4]
    one_sheet = {patch.get_facecolor() for patch in cells[0][5:21]}
    assert len(one_sheet) == 1  # a channel has one weight
    assert [patch.get_facecolor() for patch in cells[1][16:32]] == [patch.get_facecolor() for patch in cells[1][:16]]


def test_channel_weights_show_the_first_and_the_last_block():
    gates = [np.linspace(0, 1, 2 * channels).reshape(2, channels) for channels in (4, 6, 8)]
    figure = channel_weights(gates, ("0", "7"))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["block 1", "block 3"]
    for axes, drawn in zip(figure.axes, (gates[0], gates[2])):
        assert [line.get_label() for line in axes.lines] == ["0", "7"]
        for line, values in zip(axes.lines, drawn):
            np.testing.assert_array_equal(line.get_ydata(), values)


def test_maps_have_their_range_below_and_the_query_framed():
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8))
    maps = [[np.full((4, 4), 0.25), np.arange(4.0).reshape(2, 2)] for _ in range(2)]
    figure = weight_maps(images, maps, "{:.2f} to {:.2f}", queries=[(0, 3), (1, 1)])
    assert len(figure.axes) == 6
    assert [axes.get_xlabel() for axes in figure.axes[:3]] == ["", "0.25 to 0.25", "0.00 to 3.00"]
    assert figure.axes[2].images[1].get_clim() == (0, 3)
    frame = figure.axes[0].patches[0]
    assert isinstance(frame, Rectangle)
    assert (frame.get_xy(), frame.get_width()) == ((5.5, -0.5), 2.0)
    assert weight_maps(images, maps, "{}{}", highest=1.0).axes[2].images[1].get_clim() == (0, 1)
