"""The .npz files of google-research/vision_transformer and big_vision (JAX)."""

from kawara.weights.foreign import Format
from kawara.weights.google.reading import read, recognises

__all__ = ["FORMAT"]

FORMAT = Format("google", recognises, read)
