"""`kawara demo`: the whole way on real images, in a minute or two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kawara.data.sources import load_data, open_data
from kawara.predict import Prediction, load
from kawara.runtime import num_threads_that_pay
from kawara.training.progress import Reporter
from kawara.verbs.planning import TrainRequest
from kawara.verbs.training import TrainResult, run_training

NUM_EXAMPLES = 8


@dataclass(frozen=True)
class Demo:
    """What the demonstration made. `predictions` holds (file, true class, answer) of some test images."""

    training: TrainResult
    predictions: list[tuple[str, str, Prediction]]
    commands: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return self.training.to_dict() | {"predictions": [answer.to_dict() | {"truth": truth} for _, truth, answer in self.predictions]}


def demo(out: str | Path, reporter: Reporter, *, started_at: float | None = None) -> Demo:
    """Train on scikit-learn's 1,797 digits, evaluate on the held-out test part and name some test images from files."""
    reporter.say("1,797 handwritten digits, 8×8 pixels, from scikit-learn: real images, no download.")
    settings, count = {}, num_threads_that_pay()
    if count < torch.get_num_threads():
        reporter.say(f"Other programs keep this machine busy: the fewer threads, the faster now. The demo takes {count}.")
        settings = {"threads": count}
    request = TrainRequest(data="digits", out=str(out), replace=True, settings=settings)
    training = run_training(request, reporter, started_at=started_at)
    predictor = load(training.model_path)
    listing = open_data("digits")
    test = load_data(listing, predictor.card.preprocessing, seed=0, val_fraction=predictor.card.recipe["data"]["val_fraction"]).splits[
        "test"
    ]
    folder = training.folder / "images"
    folder.mkdir(exist_ok=True)
    files, truths = [], []
    for index in range(min(NUM_EXAMPLES, len(test.labels))):
        truth = listing.class_names[test.labels[index]]
        path = folder / f"digit-{index}-is-{truth}.png"
        Image.fromarray(test.store[index].squeeze(-1)).save(path)
        files.append(str(path))
        truths.append(truth)
    predictions = list(zip(files, truths, predictor.predict(files)))
    commands = [
        f"kawara predict {training.model_path} {folder}",
        f"kawara evaluate {training.model_path} digits",
        "kawara train YOUR_PHOTOS/ --minutes 10     (one sub-folder for each class)",
        "kawara models",
    ]
    return Demo(training, predictions, commands)
