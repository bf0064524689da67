"""Arrays in, matplotlib Figures out; knows no torch, opens no window and keeps no global state."""

from __future__ import annotations

from kawara.plots.attention import attention_distance, attention_grid, attention_profile
from kawara.plots.calibration import reliability
from kawara.plots.confusion import confusion
from kawara.plots.curves import training_curves
from kawara.plots.filters import filter_tiles
from kawara.plots.lines import Line
from kawara.plots.localisation import localisation_by_depth, localisation_grid
from kawara.plots.norms import norm_histograms, outlier_places
from kawara.plots.positions import position_mosaic
from kawara.plots.receptive_field import receptive_field_rows
from kawara.plots.robustness import robustness
from kawara.plots.saliency import MapWithScore, deletion_insertion, randomisation, saliency_row
from kawara.plots.similarity import cka_map
from kawara.plots.skips import skip_ratio_map, skip_removal_bars
from kawara.plots.spectrum import fourier_curves, high_frequencies, variance_by_depth
from kawara.plots.style import to_png, to_svg

__all__ = [
    "Line",
    "MapWithScore",
    "attention_distance",
    "attention_grid",
    "attention_profile",
    "cka_map",
    "confusion",
    "deletion_insertion",
    "filter_tiles",
    "fourier_curves",
    "high_frequencies",
    "localisation_by_depth",
    "localisation_grid",
    "norm_histograms",
    "outlier_places",
    "position_mosaic",
    "randomisation",
    "receptive_field_rows",
    "reliability",
    "robustness",
    "saliency_row",
    "skip_ratio_map",
    "skip_removal_bars",
    "to_png",
    "to_svg",
    "training_curves",
    "variance_by_depth",
]
