"""Does "90 % sure" mean right nine times in ten? The reliability diagram (Guo et al., arXiv 1706.04599)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kawara.plots.style import CLAY, MUTED, SLATE, SLATE_PALE, Language, axes_at, house_style, new_figure, nothing_to_draw

Floats = NDArray[np.floating[Any]]

NUM_BINS = 10
Z_95 = 1.959963984540054

_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "title": "Confidence against accuracy",
        "confidence": "confidence: probability of the predicted class (%)",
        "accuracy": "images right (%)",
        "count": "images",
        "ideal": "perfectly calibrated",
        "bin": "measured, 95 % interval",
        "none": "no images",
    },
    "ja": {
        "title": "確信度と正解率",
        "confidence": "確信度：予測したクラスの確率（%）",
        "accuracy": "正解した画像の割合（%）",
        "count": "画像数",
        "ideal": "完全に較正された場合",
        "bin": "測定値（95%信頼区間）",
        "none": "画像がありません",
    },
}


def reliability(confidence: Floats, right: NDArray[Any], *, language: Language = "en") -> Figure:
    """Draw accuracy against confidence in ten bins, each with its Wilson interval, above the number of images in each.

    Args:
        confidence: (n,) probability of the predicted class, in [0, 1].
        right: (n,) whether the prediction was right.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(right, dtype=np.float64)
    words = _WORDS[language]
    with house_style():
        figure = new_figure(4.5, 4.6)
        upper = axes_at(figure, 0.72, 1.75, 3.58, 2.2)
        upper.set_title(words["title"], pad=28)
        if len(confidence) == 0:
            nothing_to_draw(upper, words["none"])
            return figure
        lower = axes_at(figure, 0.72, 0.6, 3.58, 0.9)
        bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
        count = np.bincount(bins, minlength=NUM_BINS)
        used = count > 0
        said = np.bincount(bins, confidence, NUM_BINS)[used] / count[used]
        measured = np.bincount(bins, right, NUM_BINS)[used] / count[used]
        low, high = wilson_interval(measured, count[used])

        upper.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=words["ideal"])
        spread = 100 * np.maximum(np.stack([measured - low, high - measured]), 0)
        upper.errorbar(
            100 * said, 100 * measured, yerr=spread, fmt="o", color=CLAY, ecolor=CLAY, markersize=5, elinewidth=1.3, label=words["bin"]
        )
        upper.set_ylim(0, 102)
        upper.set_ylabel(words["accuracy"])
        upper.grid()
        upper.tick_params(labelbottom=False)
        upper.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2, columnspacing=1.2)

        edges = np.arange(NUM_BINS) * 100 / NUM_BINS
        lower.bar(edges, count, width=100 / NUM_BINS - 1, align="edge", color=np.where(used, SLATE, SLATE_PALE))
        for edge, number in zip(edges[used], count[used]):
            middle = edge + 50 / NUM_BINS - 0.5
            lower.annotate(f"{number:,}", (middle, number), (0, 2), textcoords="offset points", ha="center", fontsize=7.5, color=MUTED)
        lower.set_ylim(0, count.max() * 1.3)
        lower.set_yticks([])
        lower.spines["left"].set_visible(False)
        lower.set_ylabel(words["count"])
        lower.set_xlabel(words["confidence"])
        for axes in (upper, lower):
            axes.set_xlim(0, 101)
            axes.set_xticks(range(0, 101, 20))
    return figure


def wilson_interval(share: Floats, count: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return the 95 % Wilson score interval of a share measured on `count` images; sensible for few images and at 0 and 1."""
    count = np.asarray(count, dtype=np.float64)
    centre = (share + Z_95**2 / (2 * count)) / (1 + Z_95**2 / count)
    half = Z_95 * np.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2)) / (1 + Z_95**2 / count)
    return centre - half, centre + half
