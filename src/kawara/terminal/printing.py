"""What the verbs' output has in common: tables of metrics, JSON, the width of the terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from kawara.verbs import BackboneEvaluation


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def print_metrics(metrics: dict[str, Any], what: str) -> None:
    """Print the table of metrics with their intervals."""
    print(f"\n{metrics['num_images']:,} {what}, {metrics['num_classes']} classes (chance {1 / metrics['num_classes']:.1%})")
    table = Table("", "value", "95 % interval", box=None, pad_edge=False)
    for name, title in (("top1", "top-1 accuracy"), ("top5", "top-5 accuracy"), ("balanced_accuracy", "balanced accuracy")):
        if name == "top5" and metrics["num_classes"] <= 5:
            continue
        low, high = metrics[f"{name}_ci95"]
        table.add_row(title, f"{metrics[name]:.2%}", f"{low:.2%} – {high:.2%}")
    for name, title in (("nll", "negative log-likelihood"), ("ece", "calibration error (ECE)")):
        low, high = metrics[f"{name}_ci95"]
        table.add_row(title, f"{metrics[name]:.4f}", f"{low:.4f} – {high:.4f}")
    stdout().print(table)
    if "agreement" in metrics:
        _print_agreement(metrics["agreement"])


def _print_agreement(agreement: dict[str, Any]) -> None:
    """Print how often teacher, heads and labels decide alike."""
    print("\nThey decide alike on this share of the images:")
    table = Table("", *agreement["who"], box=None, pad_edge=False)
    for name, row in zip(agreement["who"], agreement["same"]):
        table.add_row(name, *(f"{value:.1%}" for value in row))
    stdout().print(table)


def print_classes(rows: list[dict[str, Any]]) -> None:
    print()
    table = Table("class", "images", "recall", "precision", "mostly taken for", box=None, pad_edge=False)
    for row in rows:
        recall, precision = ("–" if row[key] is None else f"{row[key]:.1%}" for key in ("recall", "precision"))
        table.add_row(plain(row["class"]), str(row["num_images"]), recall, precision, plain(row["mostly_confused_with"] or ""))
    stdout().print(table)


def print_backbone(evaluation: BackboneEvaluation) -> None:
    """Print the accuracies of frozen features, a row for each number of shots or neighbours."""
    num_classes = len(evaluation.class_names)
    print(f"\n{evaluation.num_images:,} {evaluation.split} images, {num_classes} classes (chance {1 / num_classes:.1%}); ", end="")
    if evaluation.protocol == "knn":
        print(f"nearest of {evaluation.num_support:,} train images")
        table = Table("neighbours", "top-1 accuracy", "95 % interval", box=None, pad_edge=False)
        for row in evaluation.results:
            low, high = row["top1_ci95"]
            table.add_row(str(row["neighbours"]), f"{row['top1']:.2%}", f"{low:.2%} – {high:.2%}")
    else:
        print(f"linear classifiers on a few of {evaluation.num_support:,} train images")
        table = Table("images a class", "top-1 accuracy", "± (draws)", "each draw", box=None, pad_edge=False)
        for row in evaluation.results:
            values = ", ".join(f"{value:.2%}" for value in row["values"])
            table.add_row(str(row["shots"]), f"{row['mean']:.2%}", f"{row['std']:.2%}", values)
    stdout().print(table)


def program() -> str:
    """Return what a person has to type to start kawara here: `.venv/bin/kawara` where the environment is not active."""
    if shutil.which("kawara"):
        return "kawara"
    started_as = Path(sys.argv[0])
    return os.path.relpath(started_as) if started_as.name == "kawara" else "python -m kawara"


def stdout() -> Console:
    """Return a console as wide as the terminal; piped output is never cut."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


def plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)
