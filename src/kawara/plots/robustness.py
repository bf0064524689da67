"""What is left of the accuracy when images are spoiled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from kawara.plots.lines import Line, draw_lines, title_and_legend
from kawara.plots.style import MUTED, Language, axes_at, house_style, new_figure, nothing_to_draw

_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "drop": "Tiles dropped",
        "shuffle": "Tiles shuffled",
        "shift": "Shifted",
        "noise": "Gaussian noise",
        "blur": "Gaussian blur",
        "share_of_tiles": "tiles painted black (%)",
        "tiles_per_side": "tiles per side (1 is the image itself)",
        "share_of_side": "share of the shorter side (%)",
        "deviation": "deviation of the noise (white − black = 1)",
        "accuracy": "images right (%)",
        "chance": "chance",
        "none": "nothing measured",
        "random": "random tiles",
        "salient": "salient tiles",
        "non_salient": "other tiles",
    },
    "ja": {
        "drop": "タイルの欠落",
        "shuffle": "タイルの並べ替え",
        "shift": "平行移動",
        "noise": "ガウスノイズ",
        "blur": "ガウスぼかし",
        "share_of_tiles": "黒く塗ったタイルの割合（%）",
        "tiles_per_side": "一辺のタイル数（1は元の画像）",
        "share_of_side": "短辺に対する割合（%）",
        "deviation": "ノイズの標準偏差（白−黒=1）",
        "accuracy": "正解した画像の割合（%）",
        "chance": "偶然の水準",
        "none": "測定がありません",
        "random": "ランダムなタイル",
        "salient": "重要なタイル",
        "non_salient": "その他のタイル",
    },
}


def drop_name(kind: str, language: Language = "en") -> str:
    """Return how the line of drop_random, drop_salient or drop_non_salient is called."""
    return _WORDS[language][kind.removeprefix("drop_")]


def robustness(corruption: str, unit: str, lines: Sequence[Line], *, chance: float | None = None, language: Language = "en") -> Figure:
    """Draw accuracy against strength, with a band of ± one deviation from draw to draw.

    Args:
        corruption: "drop", "shuffle", "shift", "noise" or "blur"; "drop_random" and the like count as "drop".
        unit: of the strengths: "share_of_tiles", "tiles_per_side", "share_of_side" or "deviation".
        lines: up to five, accuracies in [0, 1]: models, or ways to choose the tiles.
        chance: accuracy of guessing, as a reference line.
    """
    words = _WORDS[language]
    percent = unit.startswith("share")
    with house_style():
        figure = new_figure(4.7, 3.8)
        axes = axes_at(figure, 0.72, 0.6, 3.78, 2.35)
        title = words[corruption.partition("_")[0]]
        if not lines:
            axes.set_title(title)
            nothing_to_draw(axes, words["none"])
            return figure
        if unit == "tiles_per_side":  # 1, 2, 4, 8: even steps, and no room wasted between the last two
            levels = sorted({float(x) for line in lines for x in line.x})
            lines = [Line(line.label, np.array([levels.index(float(x)) for x in line.x]), line.y, line.spread) for line in lines]
            axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        elif percent:
            lines = [Line(line.label, 100 * np.asarray(line.x), line.y, line.spread) for line in lines]
        draw_lines(axes, lines, percent=True)
        if chance is not None:
            axes.axhline(100 * chance, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label=words["chance"])
        axes.set_xlabel(words[unit])
        axes.set_ylabel(words["accuracy"])
        axes.set_ylim(0, 102)
        axes.grid(axis="y")
        title_and_legend(axes, title)
    return figure
