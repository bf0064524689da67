"""What the command line does, as functions."""

from kawara.verbs.backbone import BackboneEvaluation
from kawara.verbs.conversion import Conversion, convert
from kawara.verbs.demonstration import Demo, demo
from kawara.verbs.description import describe_model, diagnose, list_models
from kawara.verbs.evaluation import Evaluation, evaluate
from kawara.verbs.exporting import Export, export
from kawara.verbs.planning import TrainRequest
from kawara.verbs.training import TrainResult, resolve, run_training, train

__all__ = [
    "BackboneEvaluation",
    "Conversion",
    "Demo",
    "Evaluation",
    "Export",
    "TrainRequest",
    "TrainResult",
    "convert",
    "demo",
    "describe_model",
    "diagnose",
    "evaluate",
    "export",
    "list_models",
    "resolve",
    "run_training",
    "train",
]
