"""What an answer rests on, by several methods, each with the number that says whether to believe it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kawara.plots.lines import Line, draw_lines, shared_legend, title_and_legend
from kawara.plots.overlay import heading, overlay, show_picture, thumbnail
from kawara.plots.style import CLAY, INK, MUTED, Language, axes_at, house_style, new_figure, shortened

Floats = NDArray[np.floating[Any]]
ImageArray = NDArray[np.uint8]

_METHODS: dict[Language, dict[str, str]] = {
    "en": {
        "rollout": "rollout",
        "gradient_rollout": "gradient rollout",
        "grad_cam": "Grad-CAM",
        "occlusion": "occlusion",
        "random": "random map",
    },
    "ja": {
        "rollout": "ロールアウト",
        "gradient_rollout": "勾配ロールアウト",
        "grad_cam": "Grad-CAM",
        "occlusion": "遮蔽法",
        "random": "ランダム",
    },
}
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "image": "image",
        "deletion": "deletion {:.2f}",
        "insertion": "insertion {:.2f}",
        "random": "random orders {:.2f}",
        "both": "beats random both ways",
        "one_deletion": "only deletion beats random",
        "one_insertion": "only insertion beats random",
        "neither": "no better than random",
        "deletion_title": "Deletion (lower is better)",
        "insertion_title": "Insertion (higher is better)",
        "deleted": "cells painted over, most important first (%)",
        "inserted": "cells shown, most important first (%)",
        "probability": "probability of the class (%)",
        "random_orders": "random orders",
        "randomised_title": "Likeness to the maps before",
        "layers": "layers randomised, from the head down",
        "correlation": "rank correlation",
    },
    "ja": {
        "image": "画像",
        "deletion": "削除 {:.2f}",
        "insertion": "挿入 {:.2f}",
        "random": "ランダム順 {:.2f}",
        "both": "両方ともランダムより良い",
        "one_deletion": "削除のみランダムより良い",
        "one_insertion": "挿入のみランダムより良い",
        "neither": "ランダムと差がない",
        "deletion_title": "削除曲線（低いほど良い）",
        "insertion_title": "挿入曲線（高いほど良い）",
        "deleted": "重要な順に塗りつぶした割合（%）",
        "inserted": "重要な順に表示した割合（%）",
        "probability": "クラスの確率（%）",
        "random_orders": "ランダム順",
        "randomised_title": "元のマップとの類似",
        "layers": "乱数にした層の数（出力側から）",
        "correlation": "順位相関",
    },
}


@dataclass(frozen=True)
class MapWithScore:
    """A map (h, w) of one method, the areas under its two curves, and whether each of them beats every random order."""

    method: str
    values: Floats
    deletion_area: float
    insertion_area: float
    beats_deletion: bool
    beats_insertion: bool


def method_name(method: str, language: Language = "en") -> str:
    """Return the name of a saliency method as people write it."""
    return _METHODS[language].get(method, method)


def saliency_row(
    image_u8: ImageArray, maps: Sequence[MapWithScore], random_area: float, *, title: str = "", language: Language = "en"
) -> Figure:
    """Draw an image and what each method says about it, with its numbers below.

    Args:
        image_u8: (H, W, 3) or (H, W, 1) uint8: what the model saw, before normalisation.
        random_area: mean area of random orders.
        title: which class is explained, and how sure the model is.
    """
    words = _WORDS[language]
    side, gap = 1.75, 0.14
    height = side * image_u8.shape[0] / image_u8.shape[1]
    with house_style():
        figure = new_figure((len(maps) + 1) * (side + gap) + gap, height + 1.24)
        picture = thumbnail(image_u8, round(150 * max(side, height)))
        for column in range(len(maps) + 1):
            axes = axes_at(figure, gap + column * (side + gap), 0.66, side, height)
            if column == 0:
                show_picture(axes, picture)
                axes.set_title(words["image"], fontsize=9.5, fontweight="normal", pad=4)
                _write_below(axes, [(words["random"].format(random_area), MUTED)])
            else:
                _map_panel(axes, maps[column - 1], overlay(picture, maps[column - 1].values), words, language)
        heading(figure, title, gap)
    return figure


def deletion_insertion(
    shares: Floats, curves: Mapping[str, tuple[Floats, Floats]], random_deletion: Floats, *, language: Language = "en"
) -> Figure:
    """Draw the deletion and insertion curves of up to four methods beside those of random orders.

    Args:
        shares: (S + 1,) from 0 to 1.
        curves: by method, deletion and insertion (S + 1,): probability of the class, in [0, 1].
        random_deletion: (Z, S + 1) deletion curves of random orders; read backwards they are insertion curves. The band is ± one deviation.
    """
    words = _WORDS[language]
    width = 4.5
    with house_style():
        figure = new_figure(2 * width, 3.6)
        random = np.asarray(random_deletion, np.float64)
        for column, panel in enumerate(("deletion", "insertion")):
            axes = axes_at(figure, column * width + 0.72, 0.6, width - 0.92, 2.3)
            axes.set_title(words[f"{panel}_title"], pad=8)
            orders = random if panel == "deletion" else random[:, ::-1]
            lines = [Line(method_name(method, language), 100 * shares, both[column]) for method, both in curves.items()]
            lines.append(Line(words["random_orders"], 100 * shares, orders.mean(axis=0), orders.std(axis=0)))
            draw_lines(axes, lines, percent=True)
            axes.set_xlabel(words["deleted" if panel == "deletion" else "inserted"])
            axes.set_ylabel(words["probability"])
            axes.set_xlim(0, 100)
            axes.set_ylim(0, 102)
            axes.grid()
        shared_legend(figure, figure.axes[0], 0.72)
    return figure


def randomisation(num_layers: Sequence[int], correlations: Mapping[str, Floats], *, language: Language = "en") -> Figure:
    """Draw how like its former self each method's map is when the model is randomised from the head down (arXiv 1810.03292).

    Args:
        num_layers: (k,) how many layers are randomised.
        correlations: by method, rank correlations (k, B) for B images; NaN counts as none.
    """
    words = _WORDS[language]
    with house_style():
        figure = new_figure(5.0, 3.75)
        axes = axes_at(figure, 0.72, 0.6, 4.08, 2.3)
        lines = []
        for method, values in correlations.items():
            values = np.nan_to_num(np.asarray(values, np.float64))
            lines.append(Line(method_name(method, language), np.asarray(num_layers), values.mean(axis=1), values.std(axis=1)))
        draw_lines(axes, lines)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_xlabel(words["layers"])
        axes.set_ylabel(words["correlation"])
        axes.set_ylim(top=1.04)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(axis="y")
        title_and_legend(axes, words["randomised_title"])
    return figure


def _map_panel(axes: Axes, one: MapWithScore, picture: ImageArray, words: dict[str, str], language: Language) -> None:
    show_picture(axes, picture)
    axes.set_title(shortened(method_name(one.method, language), 1.75, 9.5), fontsize=9.5, fontweight="normal", pad=4)
    deletion, insertion = words["deletion"].format(one.deletion_area), words["insertion"].format(one.insertion_area)
    verdict = {
        (True, True): ("both", MUTED),
        (True, False): ("one_deletion", CLAY),
        (False, True): ("one_insertion", CLAY),
        (False, False): ("neither", CLAY),
    }[bool(one.beats_deletion), bool(one.beats_insertion)]
    _write_below(axes, [(deletion, INK), (insertion, INK), (words[verdict[0]], verdict[1])])


def _write_below(axes: Axes, lines: Sequence[tuple[str, str]]) -> None:
    for number, (text, color) in enumerate(lines):
        axes.annotate(text, (0, 0), (0, -5 - 12.5 * number), "axes fraction", "offset points", va="top", fontsize=8.5, color=color)
