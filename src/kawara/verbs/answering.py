"""What the models of several sides answer on the very same images, as they are and spoiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kawara.analysis.corruptions import CORRUPTIONS
from kawara.analysis.robustness import robustness
from kawara.data.loading import Batch, EvalLoader
from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import ImageSplit
from kawara.errors import ConfigError, DataError
from kawara.predict import Predictor, load
from kawara.runtime import autocast_dtype
from kawara.tasks.classification import classify
from kawara.tasks.metrics import classification_metrics
from kawara.training.progress import Reporter
from kawara.verbs.contenders import Side
from kawara.verbs.evaluation import EVALUATION_BATCH, labelled_parts

SPOILED: dict[str, tuple[float, ...]] = {
    "noise": (0.05, 0.1, 0.2, 0.4),
    "blur": (0.01, 0.02, 0.04),
    "shift": (1 / 16, 1 / 8, 1 / 4),
    "drop_random": (0.25, 0.5, 0.75),
}
"""Corruption → strengths that models are compared at, beside the intact images."""
MOST_SPOILED_IMAGES = 1000


@dataclass(frozen=True)
class Answers:
    """What one side answered. S seeds, n images, m of them spoiled, at the strengths of each corruption."""

    right: NDArray[np.bool_]
    """(S, n)."""
    metrics: list[dict[str, Any]]
    """Of each seed: top1, balanced_accuracy, nll, ece …"""
    spoiled: dict[str, NDArray[np.bool_]]
    """(S, strengths, m); the first strength is the intact image."""
    model: Predictor
    """That of the first seed."""


@dataclass(frozen=True)
class Answered:
    """The answers of all sides on the images that they have in common."""

    sides: list[Answers]
    split: str
    num_images: int
    num_classes: int
    num_spoiled: int


@dataclass(frozen=True)
class _Work:
    """The images of one side: `rows` (n,) are the places, in its part, of the images that all sides have in common."""

    split: ImageSplit
    rows: NDArray[np.int64]


def answer(sides: Sequence[Side], data: str, *, split: str | None, device: str | None, reporter: Reporter, spoil: bool = True) -> Answered:
    """Let every model of every side answer the images of one part of the data, each with its own preprocessing.

    Raises DataError where the sides have no image in common, ConfigError where they name different classes.
    """
    heads = [load(side.files[0], device=device) for side in sides]
    _check_classes(sides, heads)
    said = Reporter(quiet=True) if sides[0].seeds else reporter  # of models trained just now it is clear that they are held out of some
    work = _common(_parts(heads, data, split, said))
    num_images = len(work[0].rows)
    chosen = np.unique(np.linspace(0, num_images - 1, min(MOST_SPOILED_IMAGES, num_images)).astype(int)) if spoil else np.array([], int)
    total, done = sum(len(side.files) for side in sides), 0
    answered = []
    for side, head, images in zip(sides, heads, work):
        right, metrics, spoiled = [], [], []
        for file in side.files:
            reporter.progress("answering", done / total, f"{done} of {total} models")
            predictor = load(file, device=device) if file != side.files[0] else head
            probabilities, labels = _answers(predictor, images)
            right.append(probabilities.argmax(axis=1) == labels)
            metrics.append(classification_metrics(probabilities, labels, resamples=1))
            if spoil:
                spoiled.append(_spoiled(predictor, images, chosen, right[-1]))
            done += 1
        joined = {name: np.stack([of_seed[name] for of_seed in spoiled]) for name in SPOILED} if spoil else {}
        answered.append(Answers(np.stack(right), metrics, joined, head))
    reporter.progress("answering", 1.0)
    return Answered(answered, work[0].split.name, num_images, len(heads[0].class_names), len(chosen))


def _check_classes(sides: Sequence[Side], heads: Sequence[Predictor]) -> None:
    for side, head in zip(sides, heads):
        head.require_classes()
        if set(head.class_names) != set(heads[0].class_names):
            others = sorted(set(head.class_names) ^ set(heads[0].class_names))
            raise ConfigError(f"{sides[0].label} and {side.label} name different classes.", got=", ".join(others[:6]))


def _parts(heads: Sequence[Predictor], data: str, split: str | None, reporter: Reporter) -> list[ImageSplit]:
    """Return the part that each side is measured on; sides that see images alike share one."""
    known: dict[tuple[Preprocessing, tuple[str, ...], str], ImageSplit] = {}
    found = []
    for head in heads:
        settings = head.card.recipe.get("data", {})
        key = (head.card.preprocessing, head.class_names, str((settings.get("split_seed"), settings.get("val_fraction"))))
        if key not in known:
            parts, skipped = labelled_parts(data, head.card, split, reporter)
            if skipped and not known:
                reporter.say(f"{len(skipped)} files could not be read and are not counted.")
            known[key] = parts[0]
        found.append(known[key])
    return found


def _common(parts: Sequence[ImageSplit]) -> list[_Work]:
    """Find the images that all parts hold, in the order of the first."""
    places = [{key: row for row, key in enumerate(part.keys)} for part in parts]
    keys = [key for key in parts[0].keys if all(key in place for place in places[1:])]
    if not keys:
        raise DataError(
            "The models were held out of different images: there is none that both may be measured on.",
            remedy="DATA that neither was trained on, or --split",
        )
    return [_Work(part, np.array([place[key] for key in keys], dtype=np.int64)) for part, place in zip(parts, places)]


def _answers(predictor: Predictor, images: _Work) -> tuple[np.ndarray, np.ndarray]:
    loader = EvalLoader(images.split, predictor.card.preprocessing, batch_size=EVALUATION_BATCH, device=predictor.device)
    probabilities, labels = classify(predictor.model, loader, autocast_dtype("auto", predictor.device))
    return probabilities[images.rows], labels[images.rows]


def _spoiled(predictor: Predictor, images: _Work, chosen: NDArray[np.int64], intact: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Return the right answers (strengths, m) on the chosen images under each corruption, intact first."""
    model: Any = predictor.model
    batches = _chosen_batches(predictor, images, chosen)
    found = robustness(model, batches, predictor.card.preprocessing, list(SPOILED), strengths=SPOILED, num_draws=1)
    as_numbered = np.argsort(np.argsort(images.rows[chosen]))  # the loader serves them in the order of the part
    return {name: np.concatenate([intact[None, chosen], found[name].right[:, 0, as_numbered]]) for name in SPOILED}


def _chosen_batches(predictor: Predictor, images: _Work, chosen: NDArray[np.int64]) -> Iterator[Batch]:
    """Yield the chosen images, numbered alike for every side: a corruption draws from the number."""
    number_of = {int(row): number for number, row in enumerate(images.rows[chosen].tolist())}
    loader = EvalLoader(images.split, predictor.card.preprocessing, batch_size=EVALUATION_BATCH, device=predictor.device)
    for batch in loader:
        kept = [place for place, row in enumerate(batch.indices.tolist()) if row in number_of]
        if kept:
            where = torch.tensor(kept)
            numbers = torch.tensor([number_of[int(batch.indices[place])] for place in kept])
            yield replace(batch, images=batch.images[where], labels=batch.labels[where], indices=numbers)


def strengths_of(corruption: str) -> list[float]:
    """Return the strengths of `Answers.spoiled`, the intact image first."""
    return [CORRUPTIONS[corruption].intact, *SPOILED[corruption]]


def sides_of_files(first: str | Path, second: str | Path) -> list[Side]:
    """Return two model files as sides, each named by that part of its path which the other does not have."""
    one, other = Path(first).parts, Path(second).parts
    while len(one) > 1 and len(other) > 1 and one[0] == other[0]:
        one, other = one[1:], other[1:]
    while len(one) > 1 and len(other) > 1 and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    labels = ["/".join(one), "/".join(other)]
    if labels[0] == labels[1]:
        labels[1] += " (again)"
    return [Side(label, (Path(file),)) for label, file in zip(labels, (first, second))]
