"""Arrays in, matplotlib Figures out; knows no torch, opens no window and keeps no global state."""

from __future__ import annotations

from kawara.plots.calibration import reliability
from kawara.plots.confusion import confusion
from kawara.plots.curves import training_curves
from kawara.plots.style import to_png, to_svg

__all__ = ["confusion", "reliability", "to_png", "to_svg", "training_curves"]
