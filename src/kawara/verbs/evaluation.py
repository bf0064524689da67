"""`kawara evaluate`: what a model is worth on labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kawara.data.listing import Listing, SkippedFile
from kawara.data.loading import EvalLoader
from kawara.data.sources import ImageData, ImageSplit, load_data, open_data
from kawara.errors import DataError
from kawara.predict import Predictor, load
from kawara.runtime import autocast_dtype
from kawara.tasks.classification import classify
from kawara.tasks.metrics import classification_metrics, confusion_matrix, per_class
from kawara.training.progress import Reporter
from kawara.weights import ModelCard

EVALUATION_BATCH = 256
TRAINING_SAMPLE = 256


@dataclass(frozen=True)
class Evaluation:
    """What a model answered on the images of one split, and what that is worth."""

    metrics: dict[str, Any]
    split: str
    class_names: tuple[str, ...]
    probabilities: np.ndarray
    labels: np.ndarray
    confusion: np.ndarray
    per_class: list[dict[str, Any]]
    skipped: list[SkippedFile]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            **self.metrics,
            "split": self.split,
            "skipped": len(self.skipped),
            "skipped_files": [{"path": file.path, "reason": file.reason} for file in self.skipped],
            "class_names": list(self.class_names),
            "confusion": self.confusion.tolist(),
            "per_class": self.per_class,
        }


def measure(
    model: nn.Module,
    split: ImageSplit,
    card: ModelCard,
    *,
    device: torch.device,
    skipped: list[SkippedFile],
    batch_size: int = EVALUATION_BATCH,
    workers: int = 0,
) -> Evaluation:
    """Evaluate `model` on every image of `split`."""
    loader = EvalLoader(split, card.preprocessing, batch_size=batch_size, workers=workers, device=device)
    return judge(*classify(model, loader, autocast_dtype("auto", device)), card, split=split.name, skipped=skipped)


def judge(probabilities: np.ndarray, labels: np.ndarray, card: ModelCard, *, split: str, skipped: list[SkippedFile]) -> Evaluation:
    """Say what answers are worth: probabilities (n, K) and labels (n,)."""
    class_names = card.class_names
    confusion = confusion_matrix(probabilities.argmax(axis=1), labels, len(class_names))
    return Evaluation(
        metrics=classification_metrics(probabilities, labels),
        split=split,
        class_names=class_names,
        probabilities=probabilities,
        labels=labels,
        confusion=confusion,
        per_class=per_class(confusion, class_names),
        skipped=skipped,
    )


def evaluate(
    model: str | Path | Predictor,
    data: str | Path,
    *,
    split: str | None = None,
    device: str | None = None,
    batch_size: int = EVALUATION_BATCH,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Measure a model on labelled images: top-1, top-5, balanced accuracy, NLL, ECE with 95 % intervals, confusion, per class.

    Args:
        model: a model file, or a Predictor.
        data: anything that `train` takes.
        split: "train", "val", "test" or "all". By default the test part, else the validation part, else everything. A data
            set without parts is evaluated whole, unless it holds images that the model was trained on: then only the part
            that was held out of training is.

    Raises:
        DataError: the data cannot be used, or has classes that the model does not know.
    """
    reporter = reporter or Reporter(quiet=True)
    predictor = model if isinstance(model, Predictor) else load(model, device=device)
    card = predictor.card
    listing = open_data(data)
    images = _load(listing, card, reporter, hold_out=False)
    if split is None and not {"val", "test"} & set(images.splits) and _was_trained_on(images, card):
        reporter.say("These images hold some that the model was trained on; only the part that was held out is counted.")
        images = _load(listing, card, reporter, hold_out=True)
    if split is None:
        split = next(name for name in ("test", "val", "all", "train") if name in images.splits)
    if split != "all" and split not in images.splits:
        images = _load(listing, card, reporter, hold_out=True)
        if split not in images.splits:
            raise DataError(f"{data} has no part called {split!r}.", allowed=", ".join([*images.splits, "all"]))
    chosen = images.splits.values() if split == "all" else [images.splits[split]]
    parts = [
        measure(predictor.model, part, card, device=predictor.device, skipped=images.skipped, batch_size=batch_size) for part in chosen
    ]
    return parts[0] if len(parts) == 1 else _joined(parts, card)


def _load(listing: Listing, card: ModelCard, reporter: Reporter, *, hold_out: bool) -> ImageData:
    settings = card.recipe.get("data", {})
    return load_data(
        listing,
        card.preprocessing,
        seed=settings.get("split_seed", 0),
        val_fraction=settings.get("val_fraction") or 0.1,
        progress=reporter.progress_of("reading images"),
        class_names=card.class_names,
        hold_out=hold_out,
    )


def training_sample(split: ImageSplit) -> list[str]:
    """Return short digests of up to 256 training images: what tells later whether a data set was trained on."""
    step = max(1, len(split) // TRAINING_SAMPLE)
    return [digest.tobytes().hex() for digest in split.digests[::step, :8]][:TRAINING_SAMPLE]


def _was_trained_on(images: ImageData, card: ModelCard) -> bool:
    trained = set(card.data.get("training_sample", ()))
    return any(digest.tobytes().hex() in trained for split in images.splits.values() for digest in split.digests[:, :8])


def _joined(parts: list[Evaluation], card: ModelCard) -> Evaluation:
    probabilities = np.concatenate([part.probabilities for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    confusion = sum((part.confusion for part in parts[1:]), parts[0].confusion)
    return Evaluation(
        classification_metrics(probabilities, labels), "all", card.class_names, probabilities, labels, confusion,
        per_class(confusion, card.class_names), parts[0].skipped,
    )  # fmt: skip
