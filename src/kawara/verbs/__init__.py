"""What the command line does, as functions."""

from kawara.verbs.ablation import AblateRequest, Ablation, ablate
from kawara.verbs.backbone import BackboneEvaluation
from kawara.verbs.benching import Bench, BenchRequest, bench
from kawara.verbs.checking import Check, check
from kawara.verbs.comparison import SEEDS, CompareRequest, Comparison, compare, compare_files
from kawara.verbs.conversion import Conversion, convert
from kawara.verbs.demonstration import Demo, demo
from kawara.verbs.description import describe_model, diagnose, list_models
from kawara.verbs.evaluation import Evaluation, evaluate
from kawara.verbs.exporting import Export, export
from kawara.verbs.inspection import Inspection, inspect
from kawara.verbs.labelling import Labelling, label
from kawara.verbs.planning import TrainRequest
from kawara.verbs.training import TrainResult, resolve, run_training, train

__all__ = [
    "SEEDS",
    "AblateRequest",
    "Ablation",
    "BackboneEvaluation",
    "Bench",
    "BenchRequest",
    "Check",
    "CompareRequest",
    "Comparison",
    "Conversion",
    "Demo",
    "Evaluation",
    "Export",
    "Inspection",
    "Labelling",
    "TrainRequest",
    "TrainResult",
    "ablate",
    "bench",
    "check",
    "compare",
    "compare_files",
    "convert",
    "demo",
    "describe_model",
    "diagnose",
    "evaluate",
    "export",
    "inspect",
    "label",
    "list_models",
    "resolve",
    "run_training",
    "train",
]
