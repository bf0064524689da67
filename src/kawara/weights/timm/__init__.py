"""The layout of timm, and of the projects that took its names: DeiT, DeiT-III, DINO, DINOv2, MAE."""

from kawara.weights.foreign import Format
from kawara.weights.timm.reading import read, recognises
from kawara.weights.timm.writing import write

__all__ = ["FORMAT", "write"]

FORMAT = Format("timm", recognises, read)
