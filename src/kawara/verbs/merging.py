"""What `--merge` stands for: r tokens a block (2r in every second one), or the largest r that costs no more accuracy than is allowed.

The loss is that of the merged model against the unmerged one in torch, on labelled images. They are others than those that an export is
certified on where the data set has others: the validation part, else the train part. The largest r is found by halving: a few runs
over up to MOST_IMAGES images each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kawara.data.sources import ImageSplit, open_data
from kawara.errors import ConfigError
from kawara.predict import Predictor
from kawara.training.progress import Reporter
from kawara.verbs.evaluation import labelled_parts, load_images

MOST_IMAGES = 1_000
HEADROOM = 0.75
"""The share of the allowed loss that merging may take where a precision below fp32 takes some as well."""

_BATCH = 32


@dataclass(frozen=True)
class Merged:
    """A model that merges, and how its r was found."""

    predictor: Predictor
    record: dict[str, Any]
    """`r`; with "auto" also `images`, `num_images`, `certified_on_the_same`, `max_drop` in points, and `tried`: each r with its loss."""


def merged(
    original: Predictor,
    merge: int | str | None,
    *,
    data: str | Path | None = None,
    max_drop: float = 0.5,
    precision: str = "fp32",
    reporter: Reporter,
) -> Merged | None:
    """Return a copy of a model, sharing its weights, that merges `merge` tokens a block; None changes nothing.

    "auto" needs `data`. Raises ConfigError for what `merge` cannot be, and for models without tokens.
    """
    if merge is None:
        return None
    if merge != "auto":
        r = _number(merge)
        return Merged(original.with_merging(r), {"r": r})
    if data is None:
        raise ConfigError("--merge auto measures what merging costs.", got="no images", remedy="--data DATA, or --merge 8")
    original.with_merging(1)  # a CNN is refused before anything is measured
    part, same = _images_to_choose_on(data, original, reporter)
    allowed = max_drop if precision == "fp32" else HEADROOM * max_drop
    r, tried = _largest(original, part, allowed, reporter)
    note = ", which it is certified on too" if same else ""
    reporter.say(f"merging {r} tokens a block: {tried[r]:.2f} points of top-1 are lost on {part.name}{note}")
    record = {
        "r": r,
        "images": f"{data}, {part.name}",
        "num_images": len(_chosen(part)),
        "certified_on_the_same": same,
        "max_drop": allowed,
        "tried": [{"r": tokens, "drop_points": drop} for tokens, drop in sorted(tried.items())],
    }
    return Merged(original.with_merging(r), record)


def _number(merge: int | str) -> int:
    try:
        r = int(merge)
    except ValueError:
        r = -1
    if r < 0:
        raise ConfigError("--merge is a number of tokens for each block.", got=merge, allowed="0, 1, 2, …, or auto")
    return r


def _images_to_choose_on(data: str | Path, original: Predictor, reporter: Reporter) -> tuple[ImageSplit, bool]:
    """Return labelled images, and whether they are those that an export is certified on."""
    certified, _ = labelled_parts(data, original.card, None, Reporter(quiet=True))
    name = certified[0].name
    if name in ("val", "test"):
        for hold_out in (False, True):
            splits = load_images(open_data(data), original.card, reporter, hold_out=hold_out).splits
            for other in ("val", "train"):
                if name in splits and other in splits and other != name:
                    return splits[other], False
    return certified[0], True


def _chosen(part: ImageSplit) -> list[int]:
    """Return up to MOST_IMAGES positions, evenly spread."""
    return np.unique(np.linspace(0, len(part) - 1, min(len(part), MOST_IMAGES)).round().astype(int)).tolist()


def _largest(original: Predictor, part: ImageSplit, allowed: float, reporter: Reporter) -> tuple[int, dict[int, float]]:
    """Return the largest r that loses no more than `allowed` points, and what each r that was tried loses."""
    positions, config = _chosen(part), original.card.config
    images = torch.stack([original.card.preprocessing.place(part.store[position]) for position in positions])
    labels = part.labels[positions]

    def num_right(predictor: Predictor) -> int:
        answers = torch.cat([predictor.probabilities(batch) for batch in images.split(_BATCH)]).numpy()
        return int((answers.argmax(axis=1) == labels).sum())

    begun = num_right(original.with_merging(0))
    fits, too_many = 0, -(-(config.num_tokens - config.num_prefix) // config.depth) + 1  # beyond it, nothing would be left to merge
    tried = {0: 0.0}
    while too_many - fits > 1:
        r = (fits + too_many) // 2
        reporter.progress("merging tokens", len(tried) / 6, f"{r} a block")
        tried[r] = 100 * (begun - num_right(original.with_merging(r))) / len(labels)
        fits, too_many = (r, too_many) if tried[r] <= allowed else (fits, r)
    return fits, tried
