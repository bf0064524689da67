"""An epoch of training a new head: on features that were kept, and with the backbone run anew for every image.

    python benchmarks/frozen_head.py ../shared/data/hymenoptera --pretrained ../shared/weights/deit_tiny_patch16_224_in1k.safetensors

Both sides do the same steps in the same process, in turn, A B A B …; the ratio of each pair is reported, and beside it what the one pass
that computes the features costs. The record goes to benchmarks/measured/frozen_head.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import record
from kawara.analysis.features import extract
from kawara.data.augment import Augmentation
from kawara.data.loading import EvalLoader, TrainLoader
from kawara.data.sources import load_data, open_data
from kawara.recipes import head
from kawara.runtime import keep_large_buffers
from kawara.tasks.classification import Classification
from kawara.training.frozen import FeatureLoader, Heads
from kawara.training.optimizer import build_optimizers
from kawara.weights import open_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keep_large_buffers()
    config = head()
    model, card, _ = open_model(options.pretrained)
    images = load_data(open_data(options.data), card.preprocessing)
    train = images.splits["train"]
    model.reset_head(len(images.class_names))
    model.freeze()
    task = Classification(config.task, len(images.class_names), 0)

    started = time.perf_counter()
    features = extract(model, EvalLoader(train, card.preprocessing, batch_size=64)).by_head
    once = time.perf_counter() - started
    kept = FeatureLoader(features, train.labels, batch_size=config.batch_size)
    anew = TrainLoader(train, Augmentation(config.augment, card.preprocessing, 0), batch_size=config.batch_size, seed=0)

    def epoch_of(trained: torch.nn.Module, loader: FeatureLoader | TrainLoader) -> Callable[[int], float]:
        optimizers = build_optimizers(trained, config.optimizer, config.batch_size)

        def epoch(number: int) -> float:
            started = time.perf_counter()
            for step, batch in enumerate(loader.epoch(number)):
                task.loss(trained, batch, step)[0].backward()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            return time.perf_counter() - started

        return epoch

    sides = {"kept": epoch_of(Heads(model), kept), "anew": epoch_of(model, anew)}
    model.train()
    for epoch in sides.values():
        epoch(0)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(1, options.rounds + 1):
        for name, epoch in sides.items():
            seconds[name].append(epoch(number))
    ratios = sorted(slow / fast for slow, fast in zip(seconds["anew"], seconds["kept"]))
    case = {
        "case": f"{card.name}, {len(train)} images",
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "kept_ms": 1000 * statistics.median(seconds["kept"]),
        "anew_ms": 1000 * statistics.median(seconds["anew"]),
        "once_ms": 1000 * once,
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
    }
    print(case)
    record.write("frozen_head", [case])


if __name__ == "__main__":
    main()
