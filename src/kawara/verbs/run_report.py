"""The page and the curves that a training run leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np

from kawara.analysis.cost import count_macs, count_parameters
from kawara.config import from_dict, to_yaml
from kawara.data.sources import ImageData
from kawara.files import replacing
from kawara.models import ImageModel
from kawara.plots import to_png
from kawara.plots.curves import training_curves
from kawara.report.run_page import RunSummary, Sample, write_run_page
from kawara.training.run_config import RunConfig
from kawara.training.run_folder import RunFolder
from kawara.verbs.evaluation import Evaluation
from kawara.weights import ModelCard

NUM_SAMPLES = 12


def write_report(
    folder: RunFolder, card: ModelCard, model: ImageModel, images: ImageData, evaluation: Evaluation, outcome: dict[str, Any]
) -> None:
    """Write curves.png and report.html. `outcome` is the run's result and the reason for its model."""
    records = folder.journal.read()
    with replacing(folder.curves) as temporary:
        temporary.write_bytes(to_png(training_curves(records), dpi=120))

    split = images.splits[evaluation.split]
    predicted = evaluation.probabilities.argmax(axis=1)
    confidence = evaluation.probabilities.max(axis=1)
    right = predicted == evaluation.labels

    def samples(order: np.ndarray) -> list[Sample]:
        return [
            Sample(
                image=split.store[int(index)],
                key=split.keys[index],
                label=card.class_names[evaluation.labels[index]],
                predicted=card.class_names[predicted[index]],
                score=float(confidence[index]),
            )
            for index in order[:NUM_SAMPLES]
        ]

    wrong = np.flatnonzero(~right)
    spread = np.flatnonzero(right)[np.linspace(0, max(right.sum() - 1, 0), min(NUM_SAMPLES, right.sum())).astype(int)]
    write_run_page(
        folder.report,
        RunSummary(
            title=folder.path.name,
            data_description=images.description,
            split_sizes={name: len(part) for name, part in images.splits.items()},
            skipped=[(file.path, file.reason) for file in images.skipped],
            class_names=card.class_names,
            model_name=card.name,
            num_parameters=count_parameters(model),
            macs=count_macs(model),
            image_size=card.preprocessing.image_size,
            recipe=outcome["recipe"],
            reason=outcome["reason"],
            config_yaml=to_yaml(from_dict(RunConfig, card.recipe)),
            environment=card.environment,
            records=records,
            evaluated_split=evaluation.split,
            metrics=evaluation.metrics,
            confusion=evaluation.confusion,
            per_class=evaluation.per_class,
            confidence=confidence,
            right=right,
            mistakes=samples(wrong[np.argsort(-confidence[wrong])]),
            doubtful=samples(np.argsort(confidence)),
            correct=samples(spread),
            seconds=outcome["seconds"],
            images_per_second=outcome["images_per_second"],
            peak_memory_bytes=outcome["peak_memory_bytes"],
            model_path=str(folder.model),
            commands=[f"kawara predict {folder.model} YOUR_IMAGES/", f"kawara evaluate {folder.model} DATA/"],
        ),
    )
