"""What the command line does, as functions."""

from .demonstration import Demo, demo
from .description import describe_model, diagnose, list_models
from .evaluation import Evaluation, evaluate
from .training import TrainRequest, TrainResult, resolve, run_training, train

__all__ = [
    "Demo",
    "Evaluation",
    "TrainRequest",
    "TrainResult",
    "demo",
    "describe_model",
    "diagnose",
    "evaluate",
    "list_models",
    "resolve",
    "run_training",
    "train",
]
