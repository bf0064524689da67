"""`kawara evaluate`: what a model is worth on labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import nn

from kawara.data.listing import Listing, SkippedFile
from kawara.data.loading import EvalLoader
from kawara.data.sources import ImageData, ImageSplit, load_data, open_data
from kawara.errors import ConfigError, DataError
from kawara.predict import ExportedPredictor, Predictor, load
from kawara.runtime import autocast_dtype
from kawara.tasks.classification import classify
from kawara.tasks.metrics import classification_metrics, confusion_matrix, per_class
from kawara.training.progress import Reporter
from kawara.verbs.backbone import BackboneEvaluation, BackboneProtocol, ProtocolSettings, measure_backbone
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


@overload
def evaluate(
    model: str | Path | Predictor,
    data: str | Path,
    *,
    protocol: Literal["classify"] = "classify",
    split: str | None = None,
    merge: int | None = None,
    device: str | None = None,
    batch_size: int = EVALUATION_BATCH,
    reporter: Reporter | None = None,
) -> Evaluation: ...


@overload
def evaluate(
    model: str | Path | Predictor,
    data: str | Path,
    *,
    protocol: BackboneProtocol,
    split: str | None = None,
    shots: Sequence[int] | None = None,
    neighbours: int | None = None,
    seed: int | None = None,
    merge: int | None = None,
    device: str | None = None,
    batch_size: int = EVALUATION_BATCH,
    reporter: Reporter | None = None,
) -> BackboneEvaluation: ...


def evaluate(
    model: str | Path | Predictor,
    data: str | Path,
    *,
    protocol: str = "classify",
    split: str | None = None,
    shots: Sequence[int] | None = None,
    neighbours: int | None = None,
    seed: int | None = None,
    merge: int | None = None,
    device: str | None = None,
    batch_size: int = EVALUATION_BATCH,
    reporter: Reporter | None = None,
) -> Evaluation | BackboneEvaluation:
    """Measure a model on labelled images.

    "classify" measures the answers of its head: top-1, top-5, balanced accuracy, NLL, ECE with 95 % intervals, confusion, per class.
    "fewshot" and "knn" measure its backbone on the classes of the data, whatever they are: a linear classifier from a few images of
    each class, and the vote of the nearest neighbours.

    Args:
        model: a model file, an exported .onnx or .xml, or a Predictor.
        data: anything that `train` takes.
        split: "train", "val", "test" or "all". By default the test part, else the validation part, else everything. A data
            set without parts is evaluated whole, unless it holds images that the model was trained on: then only the part
            that was held out of training is. With "fewshot" and "knn": "val" or "test", compared with the train part; a data set
            without parts is split as for training.
        shots: for "fewshot": numbers of images of each class, by default 1, 5, 10, 25.
        neighbours: for "knn": the k whose accuracy is `top1`, by default 20; 10, 20, 100 and 200 are measured beside it.
        seed: for "fewshot": of the draws of the images, by default 0.
        merge: how many tokens each block of a ViT merges; None leaves it as the model has it.

    Raises:
        DataError: the data cannot be used, or has classes that the model does not know.
        ConfigError: an option does not act with the protocol, or the model has no head to classify with.
    """
    settings = ProtocolSettings(protocol, split, shots, neighbours, seed)
    reporter = reporter or Reporter(quiet=True)
    predictor = model if isinstance(model, Predictor) else load(model, device=device)
    predictor = predictor if merge is None else predictor.with_merging(merge)
    if protocol != "classify":
        if isinstance(predictor, ExportedPredictor):
            raise ConfigError("An exported file has answers, but no features.", got=f"--protocol {protocol}", remedy="the model file")
        images = _load_with_support(open_data(data), predictor.card, reporter)
        measured = measure_backbone(predictor, images, settings, batch_size=batch_size, reporter=reporter)
        if was_trained_on([images.splits[measured.split]], predictor.card):
            reporter.say("The model was trained on some of the images that were measured: it will be worse on new ones.")
        return measured
    predictor.require_classes()
    card = predictor.card
    chosen, skipped = labelled_parts(data, card, split, reporter)
    if isinstance(predictor, ExportedPredictor):
        parts = [judge(*predictor.classify(part), card, split=part.name, skipped=skipped) for part in chosen]
    else:
        parts = [measure(predictor.model, part, card, device=predictor.device, skipped=skipped, batch_size=batch_size) for part in chosen]
    return parts[0] if len(parts) == 1 else _joined(parts, card)


def labelled_parts(data: str | Path, card: ModelCard, split: str | None, reporter: Reporter) -> tuple[list[ImageSplit], list[SkippedFile]]:
    """Return the parts of `data` that a model is measured on (several with "all"), and the files that could not be read.

    See `evaluate` for what is chosen where `split` is None. Raises DataError for a part that does not exist.
    """
    listing = open_data(data)
    images = load_images(listing, card, reporter, hold_out=False)
    if split is None and not {"val", "test"} & set(images.splits) and was_trained_on(images.splits.values(), card):
        reporter.say("These images hold some that the model was trained on; only the part that was held out is counted.")
        images = load_images(listing, card, reporter, hold_out=True)
    if split is None:
        split = next(name for name in ("test", "val", "all", "train") if name in images.splits)
    if split != "all" and split not in images.splits:
        images = load_images(listing, card, reporter, hold_out=True)
        if split not in images.splits:
            raise DataError(f"{data} has no part called {split!r}.", allowed=", ".join([*images.splits, "all"]))
    return list(images.splits.values()) if split == "all" else [images.splits[split]], images.skipped


def load_images(listing: Listing, card: ModelCard, reporter: Reporter, *, hold_out: bool, own_classes: bool = False) -> ImageData:
    """Read a data set as a model wants it, with the classes of the model and the parts that its training made."""
    settings = card.recipe.get("data", {})
    return load_data(
        listing,
        card.preprocessing,
        seed=settings.get("split_seed", 0),
        val_fraction=settings.get("val_fraction") or 0.1,
        progress=reporter.progress_of("reading images"),
        class_names=None if own_classes else card.class_names,
        hold_out=hold_out,
    )


def _load_with_support(listing: Listing, card: ModelCard, reporter: Reporter) -> ImageData:
    """Load images with the classes of their own and a train part: that of the source where others stand beside it, else ours."""
    named = {part.split for part in (*listing.records, *listing.arrays)}
    has_parts = None not in named and "train" in named and len(named) > 1
    images = load_images(listing, card, reporter, hold_out=not has_parts, own_classes=True)
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in images.splits.items())
    reporter.say(f"{images.description} ({sizes}{'' if has_parts else '; held out by content, as for training'})")
    return images


def training_sample(split: ImageSplit) -> list[str]:
    """Return short digests of up to 256 training images: what tells later whether a data set was trained on."""
    step = max(1, len(split) // TRAINING_SAMPLE)
    return [digest.tobytes().hex() for digest in split.digests[::step, :8]][:TRAINING_SAMPLE]


def was_trained_on(splits: Iterable[ImageSplit], card: ModelCard) -> bool:
    """Say whether some of the images are of those that the model was trained on."""
    trained = set(card.data.get("training_sample", ()))
    return any(digest.tobytes().hex() in trained for split in splits for digest in split.digests[:, :8])


def _joined(parts: list[Evaluation], card: ModelCard) -> Evaluation:
    probabilities = np.concatenate([part.probabilities for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    confusion = sum((part.confusion for part in parts[1:]), parts[0].confusion)
    return Evaluation(
        classification_metrics(probabilities, labels), "all", card.class_names, probabilities, labels, confusion,
        per_class(confusion, card.class_names), parts[0].skipped,
    )  # fmt: skip
