"""Arrays in, matplotlib Figures out; knows no torch, opens no window and keeps no global state."""

from __future__ import annotations

from kawara.plots.attention import attention_distance, attention_grid, attention_profile
from kawara.plots.calibration import reliability
from kawara.plots.confusion import confusion
from kawara.plots.curves import training_curves
from kawara.plots.lines import Line
from kawara.plots.robustness import robustness
from kawara.plots.saliency import MapWithScore, deletion_insertion, randomisation, saliency_row
from kawara.plots.style import to_png, to_svg

__all__ = [
    "Line",
    "MapWithScore",
    "attention_distance",
    "attention_grid",
    "attention_profile",
    "confusion",
    "deletion_insertion",
    "randomisation",
    "reliability",
    "robustness",
    "saliency_row",
    "to_png",
    "to_svg",
    "training_curves",
]
