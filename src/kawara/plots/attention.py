"""How far attention reaches with depth, and what each head looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kawara.plots.lines import shared_legend, title_and_legend
from kawara.plots.overlay import heading, overlay, show_picture, thumbnail
from kawara.plots.style import (
    CLAY,
    MUTED,
    PAPER,
    SLATE,
    Language,
    axes_at,
    house_style,
    new_figure,
    nothing_to_draw,
    shortened,
    text_width_in,
)

Floats = NDArray[np.floating[Any]]
ImageArray = NDArray[np.uint8]

_LOOKS = ((SLATE, "o"), (CLAY, "s"))
_PX_PER_IN = 120
_GAP_PX = 6
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "distance_title": "Mean attention distance",
        "distance": "mean attention distance (px)",
        "block": "block (1 is the first)",
        "heads": "one head",
        "mean": "mean of the heads",
        "uniform": "uniform attention, {:.0f} px",
        "entropy_title": "Sharpness",
        "entropy": "entropy (nats)",
        "most": "uniform, {:.2f} nats",
        "agreement_title": "Agreement of heads",
        "agreement": "correlation of two heads",
        "prefix_title": "Taken by prefix tokens",
        "prefix": "share of the attention (%)",
        "none": "no attention layers",
        "head": "head {}",
        "block_number": "block {}",
        "grid": "each map on its own scale, from its lowest value (clear) to its highest",
    },
    "ja": {
        "distance_title": "平均アテンション距離",
        "distance": "平均アテンション距離（px）",
        "block": "ブロック（1が最初）",
        "heads": "各ヘッド",
        "mean": "ヘッドの平均",
        "uniform": "一様な場合 {:.0f} px",
        "entropy_title": "鋭さ",
        "entropy": "エントロピー（nat）",
        "most": "一様な場合 {:.2f} nat",
        "agreement_title": "ヘッド同士の一致",
        "agreement": "2つのヘッドの平均相関",
        "prefix_title": "先頭トークンへの割合",
        "prefix": "アテンションの割合（%）",
        "none": "アテンション層がありません",
        "head": "ヘッド{}",
        "block_number": "ブロック{}",
        "grid": "各マップは最小値（透明）から最大値までを個別の尺度で表示",
    },
}


def attention_distance(models: Mapping[str, Floats], *, uniform_px: float | None = None, language: Language = "en") -> Figure:
    """Draw the mean attention distance of every head against depth, as in figure 7 (right) of arXiv 2010.11929.

    Args:
        models: one or two names with distances (L, M) in px, the first layer first.
        uniform_px: the distance of uniform attention, as a reference line.
    """
    words = _WORDS[language]
    with house_style():
        figure = new_figure(5.6, 3.9)
        axes = axes_at(figure, 0.76, 0.6, 4.64, 2.6)
        _heads_by_depth(axes, models, words)
        if not axes.lines:
            axes.set_title(words["distance_title"])
            return figure
        if uniform_px is not None:
            axes.axhline(uniform_px, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=words["uniform"].format(uniform_px))
        axes.set_ylim(0, 1.06 * max(uniform_px or 0, *(float(np.max(values)) for values in models.values())))
        axes.set_ylabel(words["distance"])
        title_and_legend(axes, words["distance_title"])
    return figure


def attention_profile(
    models: Mapping[str, tuple[Floats, Floats, Floats]], *, uniform_nats: float | None = None, language: Language = "en"
) -> Figure:
    """Draw entropy, agreement of heads and what the prefix tokens take against depth, side by side.

    Args:
        models: one or two names with entropy (L, M) in nats, agreement (L,) in [−1, 1], share of all prefix tokens (L, M) in [0, 1].
        uniform_nats: the entropy of uniform attention, as a reference line.
    """
    words = _WORDS[language]
    width = 3.9
    with house_style():
        figure = new_figure(3 * width, 3.3)
        panels = [axes_at(figure, column * width + 0.72, 0.6, width - 0.92, 2.05) for column in range(3)]
        for axes, name in zip(panels, ("entropy", "agreement", "prefix")):
            axes.set_title(words[f"{name}_title"], pad=8)
            axes.set_ylabel(words[name])
        _heads_by_depth(panels[0], {name: entropy for name, (entropy, _, _) in models.items()}, words)
        _heads_by_depth(panels[1], {name: agreement[:, None] for name, (_, agreement, _) in models.items()}, words)
        _heads_by_depth(panels[2], {name: 100 * prefix for name, (_, _, prefix) in models.items()}, words)
        if uniform_nats is not None and panels[0].lines:
            panels[0].axhline(uniform_nats, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=words["most"].format(uniform_nats))
        for axes, low, high in zip(panels, (0, None, 0), (None, 1.03, None)):
            if axes.lines:
                axes.set_ylim(low, high)
        shared_legend(figure, panels[0], 0.72)
    return figure


def attention_grid(
    image_u8: ImageArray,
    maps: Floats,
    blocks: Sequence[int],
    *,
    heads: Sequence[int] | None = None,
    query: tuple[int, int] | None = None,
    title: str = "",
    language: Language = "en",
) -> Figure:
    """Draw what one query takes from each patch over the image it is from: a column for each block, a row for each head.

    Args:
        image_u8: (H, W, 3) or (H, W, 1) uint8: what the model saw, before normalisation.
        maps: (L, M, h, w) attention to the patches.
        blocks: (L,) numbers of the blocks, 1 is the first.
        heads: (M,) numbers of the heads; None is 1 to M.
        query: (row, column) of the patch that asks, framed in the picture.
        title: which query of which image.
    """
    words = _WORDS[language]
    num_blocks, num_heads = maps.shape[:2]
    longest = float(np.clip(9.0 / (num_blocks + 1), 0.45, 1.7))
    picture = thumbnail(image_u8, round(_PX_PER_IN * longest))
    # One picture of all maps: hundreds of axes would take seconds.
    cells = _mosaic([[overlay(picture, values) for values in of_head] for of_head in np.swapaxes(maps, 0, 1)])
    (height, width), (all_height, all_width) = (np.array(array.shape[:2]) / _PX_PER_IN for array in (picture, cells))
    gap, margin, top, bottom, names = _GAP_PX / _PX_PER_IN, 0.12, 0.62, 0.38, 0.72
    first = margin + width + names  # the picture, the names of the heads, then the maps
    with house_style():
        wide = max(first + all_width + margin, text_width_in(words["grid"], 8) + 2 * margin)
        figure = new_figure(wide, top + all_height + bottom)
        tall = figure.get_figheight()
        shown = axes_at(figure, margin, tall - top - height, width, height)
        show_picture(shown, picture)
        if query is not None:
            cell_height, cell_width = picture.shape[0] / maps.shape[2], picture.shape[1] / maps.shape[3]
            corner = (query[1] * cell_width - 0.5, query[0] * cell_height - 0.5)
            shown.add_patch(Rectangle(corner, cell_width, cell_height, fill=False, edgecolor=CLAY, linewidth=1.6))
        show_picture(axes_at(figure, first, bottom, all_width, all_height), cells)
        for column, block in enumerate(blocks):
            x = first + column * (width + gap) + width / 2
            label = words["block_number"].format(block)
            label = label if text_width_in(label, 8.5) < width else f"{block}"
            figure.text(x / wide, 1 - (top - 0.06) / tall, label, ha="center", va="bottom", fontsize=8.5)
        for row, head in enumerate(heads or range(1, num_heads + 1)):
            y = tall - top - height / 2 - row * (height + gap)
            figure.text((first - 0.07) / wide, y / tall, words["head"].format(head), ha="right", va="center", fontsize=8.5)
        heading(figure, title, margin)
        figure.text(margin / wide, 0.1 / tall, words["grid"], ha="left", va="bottom", fontsize=8, color=MUTED)
    return figure


def _mosaic(rows: list[list[ImageArray]]) -> ImageArray:
    """Return pictures of one size (h, w, 3) side by side, with white between them."""
    height, width = rows[0][0].shape[:2]
    canvas = np.full((len(rows) * (height + _GAP_PX) - _GAP_PX, len(rows[0]) * (width + _GAP_PX) - _GAP_PX, 3), 255, np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            top, left = row * (height + _GAP_PX), column * (width + _GAP_PX)
            canvas[top : top + height, left : left + width] = picture
    return canvas


def _heads_by_depth(axes: Axes, models: Mapping[str, Floats], words: dict[str, str]) -> None:
    """Draw a mark for each head (L, M) of one or two models, and a line through the means."""
    assert len(models) <= len(_LOOKS), f"at most {len(_LOOKS)} models fit into one panel, got {len(models)}"
    drawn = {name: np.asarray(values, np.float64) for name, values in models.items() if np.isfinite(values).any()}
    if not drawn:
        nothing_to_draw(axes, words["none"])
        return
    for number, (name, values) in enumerate(drawn.items()):
        color, marker = _LOOKS[number]
        depth = np.arange(1, len(values) + 1)
        several = values.shape[1] > 1
        if several:
            beside = 0.2 * (number - (len(drawn) - 1) / 2)  # two models stand side by side, not one on the other
            x = np.repeat(depth + beside, values.shape[1])
            dots = {"marker": marker, "markersize": 4.5, "markerfacecolor": color, "markeredgecolor": PAPER, "markeredgewidth": 0.5}
            axes.plot(x, values.ravel(), linestyle="none", alpha=0.8, label=words["heads"] if len(drawn) == 1 else None, **dots)
        label = shortened(name, 1.3) if len(drawn) > 1 else words["mean"] if several else None
        axes.plot(
            depth,
            values.mean(axis=1),
            color=color,
            linewidth=1.4,
            marker=marker,
            markersize=0 if several and len(drawn) == 1 else 4,
            label=label,
        )
    num_blocks = max(len(values) for values in drawn.values())
    axes.set_xlim(0.5, num_blocks + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.set_xlabel(words["block"])
    axes.grid(axis="y")
