"""Arrays in, matplotlib Figures out; knows no torch, opens no window and keeps no global state."""

from __future__ import annotations

from .calibration import reliability
from .confusion import confusion
from .curves import training_curves
from .gallery import gallery
from .per_class import recall_bars
from .style import to_png, to_svg

__all__ = ["confusion", "gallery", "recall_bars", "reliability", "to_png", "to_svg", "training_curves"]
