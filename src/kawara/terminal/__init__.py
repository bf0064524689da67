"""What each verb prints: tables for people on stdout, or JSON; progress and remarks on stderr."""

from __future__ import annotations

import argparse
import warnings

from kawara.terminal import edge, facts, looking, training

_VERBS = {
    "train": training.train,
    "check": looking.check,
    "evaluate": looking.evaluate,
    "predict": looking.predict,
    "compare": training.compare,
    "ablate": training.ablate,
    "inspect": looking.inspect,
    "convert": edge.convert,
    "export": edge.export,
    "bench": edge.bench,
    "models": facts.models,
    "recipes": facts.recipes,
    "demo": training.demo,
    "doctor": facts.doctor,
}


def run(options: argparse.Namespace, *, started_at: float) -> int:
    """Run the verb that `options` name and return the exit code."""
    warnings.filterwarnings("ignore", message="Corrupt EXIF data")  # the picture is used; its orientation is read where it can be
    return _VERBS[options.verb](options, started_at)
