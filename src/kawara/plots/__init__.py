"""Arrays in, matplotlib Figures out; knows no torch, opens no window and keeps no global state."""

from __future__ import annotations

from .calibration import reliability
from .confusion import confusion
from .curves import training_curves
from .style import to_png, to_svg

__all__ = ["confusion", "reliability", "to_png", "to_svg", "training_curves"]
