"""What the skip connections carry, and what is lost without one (Raghu et al., arXiv 2108.08810)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kawara.plots.scales import DIVERGING, draw_cells, draw_scale, layer_ticks, short_names
from kawara.plots.style import (
    CLAY,
    MUTED,
    SLATE,
    SMALL_PT,
    Language,
    axes_at,
    house_style,
    new_figure,
    nothing_to_draw,
    text_width_in,
)

Floats = NDArray[np.floating[Any]]

_WIDTH_IN = 4.6
_ROW_IN = 0.17
_NUM_COLUMNS = 196
_PREFIX_SHARE = 0.06
_MAX_LOG2 = 3.0
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "ratio_title": "What the skip connections carry",
        "attention": "over attention",
        "mlp": "over MLP",
        "skip": "skip connections",
        "block": "block",
        "class": "class",
        "prefix": "prefix",
        "patches": "patches, row by row",
        "cells": "cells of the map, row by row",
        "scale": "length of the stream / length of the branch",
        "removal_title": "Without one skip connection",
        "accuracy": "images right (%)",
        "agreement": "answers unchanged (%)",
        "cka": "CKA of the features with those of the whole model",
        "intact": "whole model {:.1f} %",
        "none": "no skip connections",
    },
    "ja": {
        "ratio_title": "スキップ接続が運ぶもの",
        "attention": "アテンションをまたぐ接続",
        "mlp": "MLPをまたぐ接続",
        "skip": "スキップ接続",
        "block": "ブロック",
        "class": "クラス",
        "prefix": "前置",
        "patches": "パッチ（行順）",
        "cells": "特徴マップの位置（行順）",
        "scale": "残差ストリームの長さ / ブランチの長さ",
        "removal_title": "スキップ接続を1つ外した場合",
        "accuracy": "正解した画像の割合（%）",
        "agreement": "答えが変わらない割合（%）",
        "cka": "元のモデルの特徴とのCKA",
        "intact": "元のモデル {:.1f}%",
        "none": "スキップ接続がありません",
    },
}


def skip_ratio_map(ratios: Sequence[Floats], names: Sequence[str], *, num_prefix: int = 1, language: Language = "en") -> Figure:
    """Draw the ratio of stream and branch for every token (column) and skip connection (row), the prefix in a strip of its own.

    Slate is carried on, clay is rewritten; the scale is logarithmic from 1/8 to 8.

    Args:
        ratios: of each skip connection (N,), prefix tokens first.
        names: their places; those over attention and over MLP (skip1, skip2) get a panel each.
        num_prefix: R.
    """
    words = _WORDS[language]
    with house_style():
        if not ratios:
            return _empty(words["none"])
        panels = _panels(names)
        num_rows = max(len(rows) for _, rows in panels)
        labels = {kind: short_names([names[index].rpartition(".")[0] for index in rows]) for kind, rows in panels}
        left = 0.45 + max(text_width_in(label, SMALL_PT) for each in labels.values() for label in each)
        gap, height = 0.18, max(1.0, _ROW_IN * num_rows)
        width = (_WIDTH_IN - left - 0.1 - gap * (len(panels) - 1)) / len(panels)
        figure = new_figure(_WIDTH_IN, height + 1.75)
        norm = Normalize(-_MAX_LOG2, _MAX_LOG2)
        for number, (kind, rows) in enumerate(panels):
            axes = axes_at(figure, left + number * (width + gap), 1.15, width, height)
            sheet = np.stack([_stretched(np.asarray(ratios[index], dtype=np.float64), num_prefix) for index in rows])
            draw_cells(axes, np.clip(np.log2(sheet), -_MAX_LOG2, _MAX_LOG2), DIVERGING, norm, origin="lower")
            axes.set_title(words[kind], fontsize=9.5, fontweight="normal", pad=5)
            ticks, shown = layer_ticks(labels[kind])
            axes.set_yticks(ticks, shown if number == 0 else [], fontsize=SMALL_PT)
            prefix = _prefix_columns(num_prefix)
            middles = [(prefix - 1) / 2, (sheet.shape[1] + prefix) / 2][not num_prefix :]
            groups = ["class" if num_prefix == 1 else "prefix", "patches"] if num_prefix else ["cells"]
            axes.set_xticks(middles, [words[group] for group in groups], fontsize=SMALL_PT - 0.5)
            if number == 0:
                axes.set_ylabel(words["block"])
        figure.text(0.1 / _WIDTH_IN, 1 - 0.22 / (height + 1.75), words["ratio_title"], fontsize=11, fontweight="bold")
        powers = np.arange(-int(_MAX_LOG2), int(_MAX_LOG2) + 1)
        shown = [f"{2**power}" if power >= 0 else f"1/{2**-power}" for power in powers.tolist()]
        draw_scale(
            figure, (left, 0.5, _WIDTH_IN - left - 0.1, 0.12), DIVERGING, norm, words["scale"], ticks=powers.tolist(), tick_labels=shown
        )
    return figure


def skip_removal_bars(
    names: Sequence[str],
    agreement: Floats,
    cka: Floats,
    *,
    accuracy: Floats | None = None,
    accuracy_intact: float | None = None,
    language: Language = "en",
) -> Figure:
    """Draw for every skip connection what is left without it: right answers (or unchanged ones, without labels) and CKA.

    Args:
        names: places of the skip connections.
        agreement, cka, accuracy: (S,), see `kawara.analysis.skip.SkipRemoval`; shares in [0, 1].
        accuracy_intact: of the whole model, drawn as a line.
    """
    words = _WORDS[language]
    share = agreement if accuracy is None else accuracy
    with house_style():
        if not len(names):
            return _empty(words["none"])
        figure = new_figure(_WIDTH_IN, 4.2)
        panels = [
            (axes_at(figure, 0.62, 2.45, _WIDTH_IN - 0.75, 1.1), 100 * np.asarray(share), 100.0),
            (axes_at(figure, 0.62, 0.9, _WIDTH_IN - 0.75, 1.1), np.clip(np.asarray(cka, dtype=np.float64), 0, 1), 1.0),
        ]
        groups = _panels(names)
        blocks = [name.rpartition(".")[0] for name in names]
        order = list(dict.fromkeys(blocks))
        bar = 0.8 / len(groups)
        for axes, values, top in panels:
            for number, (kind, rows) in enumerate(groups):
                at = [order.index(blocks[index]) + (number - (len(groups) - 1) / 2) * bar for index in rows]
                axes.bar(at, values[rows], width=bar * 0.9, color=(SLATE, CLAY)[number], label=words[kind])
            axes.set_ylim(0, top * 1.02)
            axes.set_xlim(-0.6, len(order) - 0.4)
            ticks, shown = layer_ticks(order)
            axes.set_xticks(ticks, shown, fontsize=SMALL_PT)
            axes.grid(axis="y")
        upper, lower = panels[0][0], panels[1][0]
        upper.set_title(words["removal_title"], pad=26)
        upper.text(0, 1.06, words["agreement" if accuracy is None else "accuracy"], transform=upper.transAxes, fontsize=9)
        lower.text(0, 1.06, words["cka"], transform=lower.transAxes, fontsize=9)
        if accuracy is not None and accuracy_intact is not None:
            upper.axhline(100 * accuracy_intact, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            text = words["intact"].format(100 * accuracy_intact)
            upper.text(1, 1.06, text, transform=upper.transAxes, ha="right", fontsize=SMALL_PT, color=MUTED)
        lower.set_xlabel(words["block"])
        if len(groups) > 1:
            lower.legend(loc="upper center", bbox_to_anchor=(0.5, -0.36), ncols=2, borderaxespad=0)
    return figure


def _panels(names: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return the kinds of skip connection and which belong to each."""
    kinds = [{"skip1": "attention", "skip2": "mlp"}.get(name.rpartition(".")[2], "skip") for name in names]
    if set(kinds) != {"attention", "mlp"}:
        return [("skip", list(range(len(names))))]
    return [(kind, [index for index, each in enumerate(kinds) if each == kind]) for kind in ("attention", "mlp")]


def _prefix_columns(num_prefix: int) -> int:
    return num_prefix * round(_PREFIX_SHARE * _NUM_COLUMNS)


def _stretched(ratio: Floats, num_prefix: int) -> Floats:
    """Return one row of the map: prefix tokens made wide enough to be seen, a blank, the other tokens over the same width in every row."""
    prefix, patches = ratio[:num_prefix], ratio[num_prefix:]
    wide = np.repeat(prefix, round(_PREFIX_SHARE * _NUM_COLUMNS))
    spread = patches[np.arange(_NUM_COLUMNS) * len(patches) // _NUM_COLUMNS]
    return np.concatenate([wide, np.full(2 * bool(num_prefix), np.nan), spread])


def _empty(message: str) -> Figure:
    figure = new_figure(_WIDTH_IN, 2.0)
    nothing_to_draw(axes_at(figure, 0, 0, _WIDTH_IN, 2.0), message)
    return figure
