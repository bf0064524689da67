"""`kawara evaluate --protocol fewshot|knn`: what a backbone is worth on classes of the data's own, with a head or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from kawara.analysis.features import PooledFeatures, extract
from kawara.analysis.fewshot import L2, NUM_DRAWS, SHOTS, fewshot_accuracy, rarest_class
from kawara.analysis.neighbours import NEIGHBOURS, TEMPERATURE, knn_predict
from kawara.data.listing import SkippedFile
from kawara.data.loading import EvalLoader
from kawara.data.sources import ImageData, ImageSplit
from kawara.errors import ConfigError, DataError, UnknownNameError
from kawara.models import ImageModel
from kawara.predict import Predictor
from kawara.runtime import autocast_dtype
from kawara.tasks.metrics import accuracy_interval
from kawara.training.progress import Reporter

BackboneProtocol = Literal["fewshot", "knn"]
PROTOCOLS = ("classify", *get_args(BackboneProtocol))
USUAL_NEIGHBOURS = 20


@dataclass(frozen=True)
class ProtocolSettings:
    """How to evaluate; None where nothing was asked for. Raises ConfigError for what does not act or makes no sense."""

    protocol: str = "classify"
    split: str | None = None
    shots: Sequence[int] | None = None
    neighbours: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UnknownNameError("protocol", self.protocol, PROTOCOLS)
        for name, acts_with in (("shots", "fewshot"), ("seed", "fewshot"), ("neighbours", "knn")):
            if getattr(self, name) is not None and self.protocol != acts_with:
                raise ConfigError(f"The option {name} acts only with --protocol {acts_with}.", got=f"--protocol {self.protocol}")
        if self.shots is not None and (not self.shots or min(self.shots) < 1):
            raise ConfigError("Shots are numbers of images a class, 1 or more.", got=list(self.shots))
        if self.neighbours is not None and self.neighbours < 1:
            raise ConfigError("There must be at least one neighbour.", got=self.neighbours)
        if self.seed is not None and self.seed < 0:
            raise ConfigError("The seed cannot be negative.", got=self.seed)
        if self.protocol != "classify" and self.split in ("train", "all"):
            raise ConfigError(
                f"With --protocol {self.protocol} the train part is what the measured images are compared with.",
                got=f"--split {self.split}",
                allowed="val, test",
            )


@dataclass(frozen=True)
class BackboneEvaluation:
    """What the features of a backbone are worth: accuracies on the images of one part, given labelled images of the train part."""

    protocol: str
    metrics: dict[str, Any]
    """`top1`, how sure it is, and the settings that it was measured with."""
    results: list[dict[str, Any]]
    """One row for each number of shots or neighbours."""
    left_out: list[dict[str, Any]]
    """The numbers of shots for which there are too few images, each with the class that has the fewest."""
    split: str
    num_images: int
    num_support: int
    class_names: tuple[str, ...]
    skipped: list[SkippedFile]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "protocol": self.protocol,
            "num_images": self.num_images,
            "num_support": self.num_support,
            "num_classes": len(self.class_names),
            **self.metrics,
            "results": self.results,
            **({"left_out": self.left_out} if self.protocol == "fewshot" else {}),
            "split": self.split,
            "skipped": len(self.skipped),
            "skipped_files": [{"path": file.path, "reason": file.reason} for file in self.skipped],
            "class_names": list(self.class_names),
        }


def measure_backbone(
    predictor: Predictor, images: ImageData, settings: ProtocolSettings, *, batch_size: int, reporter: Reporter
) -> BackboneEvaluation:
    """Measure the backbone on the test part, else the val part, with the train part as support.

    Raises:
        DataError: a part is missing, or a class has too few images for every number of shots.
        ConfigError: more neighbours are asked for than there are support images.
    """
    measured = settings.split or next((name for name in ("test", "val") if name in images.splits), "test")
    for name in ("train", measured):
        if name not in images.splits:
            raise DataError(
                f"The images have no {name} part: {'others would be compared with it' if name == 'train' else 'it would be measured'}.",
                got=", ".join(images.splits),
                remedy="a folder with train/ and test/, or just one folder for each class",
            )
    support, queries = images.splits["train"], images.splits[measured]
    num_classes = len(images.class_names)
    left_out: list[dict[str, Any]] = []
    if settings.protocol == "fewshot":
        shots, left_out = _feasible_shots(settings, support, images.class_names)
        for row in left_out:
            reporter.say(f"{row['shots']} shots are left out: the class {row['class']!r} has only {row['num_images']} train images.")
        known, asked = (_features(predictor, split, batch_size, reporter) for split in (support, queries))
        metrics, results = _fewshot(known, asked, num_classes, shots, settings.seed or 0, reporter)
    else:
        usual, neighbours = _feasible_neighbours(settings, len(support))
        known, asked = (_features(predictor, split, batch_size, reporter) for split in (support, queries))
        metrics, results = _knn(known, asked, num_classes, usual, neighbours, predictor.device, reporter)
    return BackboneEvaluation(
        settings.protocol, metrics, results, left_out, measured, len(queries), len(support), images.class_names, images.skipped
    )


def _feasible_shots(settings: ProtocolSettings, support: ImageSplit, class_names: Sequence[str]) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the numbers of shots that every class has images for, and the others with the class that has the fewest."""
    wanted = sorted(set(settings.shots or SHOTS))
    rarest, most = rarest_class(support.labels)
    left_out = [{"shots": shots, "class": class_names[rarest], "num_images": most} for shots in wanted if shots > most]
    if len(left_out) == len(wanted):
        raise DataError(
            f"The class {class_names[rarest]!r} has too few images for {wanted[0]} shots.",
            got=f"{most} train images",
            remedy=f"--shots {most}",
        )
    return [shots for shots in wanted if shots <= most], left_out


def _feasible_neighbours(settings: ProtocolSettings, num_support: int) -> tuple[int, list[int]]:
    """Return the k that is reported first, and all k that are measured."""
    usual = settings.neighbours or min(USUAL_NEIGHBOURS, num_support)
    if usual > num_support:
        raise ConfigError("There are fewer train images than neighbours.", got=usual, allowed=f"1 to {num_support}")
    return usual, sorted({usual, *(k for k in NEIGHBOURS if k <= num_support)})


def _features(predictor: Predictor, split: ImageSplit, batch_size: int, reporter: Reporter) -> PooledFeatures:
    assert isinstance(predictor.model, ImageModel)
    loader = EvalLoader(split, predictor.card.preprocessing, batch_size=batch_size, device=predictor.device)
    dtype = autocast_dtype("auto", predictor.device)
    return extract(predictor.model, loader, dtype, progress=reporter.progress_of(f"features of {split.name}"))


def _fewshot(
    support: PooledFeatures, queries: PooledFeatures, num_classes: int, shots: Sequence[int], seed: int, reporter: Reporter
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    accuracies = fewshot_accuracy(
        support.joined.numpy(),
        support.labels.numpy(),
        queries.joined.numpy(),
        queries.labels.numpy(),
        num_classes=num_classes,
        shots=shots,
        seed=seed,
        progress=reporter.progress_of("few-shot classifiers"),
    )
    results = [{"shots": each.shots, "mean": each.mean, "std": each.std, "values": list(each.values)} for each in accuracies]
    most = accuracies[-1]
    return {"top1": most.mean, "top1_std": most.std, "shots": most.shots, "draws": NUM_DRAWS, "seed": seed, "l2": L2}, results


def _knn(
    support: PooledFeatures,
    queries: PooledFeatures,
    num_classes: int,
    usual: int,
    neighbours: Sequence[int],
    device: torch.device,
    reporter: Reporter,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    where = device if device.type == "cuda" else torch.device("cpu")
    predicted = knn_predict(
        queries.joined.to(where),
        support.joined.to(where),
        support.labels,
        num_classes=num_classes,
        neighbours=neighbours,
        progress=reporter.progress_of("nearest neighbours"),
    )
    results = []
    for k, answers in predicted.items():
        right = (answers == queries.labels).numpy()
        results.append({"neighbours": k, "top1": float(right.mean()), "top1_ci95": accuracy_interval(right)})
    row = next(row for row in results if row["neighbours"] == usual)
    return {**row, "temperature": TEMPERATURE}, results
