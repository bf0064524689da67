"""kawara: the Vision Transformer workbench for people who have images of their own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kawara.predict import Guess, Prediction, Predictor, load
    from kawara.verbs import evaluate, train
    from kawara.weights import create_model

__version__ = "0.1.0"

__all__ = ["Guess", "Prediction", "Predictor", "create_model", "evaluate", "load", "train"]

_HOMES = {
    "Guess": "predict",
    "Prediction": "predict",
    "Predictor": "predict",
    "create_model": "weights",
    "evaluate": "verbs",
    "load": "predict",
    "train": "verbs",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import kawara` itself does not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kawara' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
