"""Which images an export is compared on, and which int8 ranges are measured on: never the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kawara.data.sources import ImageSplit, open_data
from kawara.edge.certificate import noise_images
from kawara.errors import DataError
from kawara.training.progress import Reporter
from kawara.verbs.evaluation import labelled_parts, load_images, was_trained_on
from kawara.weights import ModelCard

NUM_IMAGES = 128
FEWEST_IMAGES = 32
SEED = 0

_SHARE = 5
"""One image of five is set aside where a data set has one part only, up to NUM_IMAGES."""


@dataclass(frozen=True)
class Shown:
    """The images that both are asked about."""

    what: str
    images: Callable[[], Iterator[np.ndarray]]
    keys: list[str]
    labels: np.ndarray | None


def compared_part(data: str | Path, card: ModelCard, reporter: Reporter) -> ImageSplit:
    """Return the part of labelled images that an export is compared on: test, else val, without images that were trained on."""
    return labelled_parts(data, card, None, reporter)[0][0]


def shown_of(data: str | Path, part: ImageSplit, card: ModelCard, positions: np.ndarray | None = None) -> Shown:
    """Show a part of a data set, or some of its images."""
    chosen = (np.arange(len(part)) if positions is None else positions).tolist()
    what = f"{data}, {part.name}" + (f", {len(chosen)} of {len(part)} images" if len(chosen) < len(part) else "")
    return Shown(what, lambda: (part.store[index] for index in chosen), [part.keys[index] for index in chosen], part.labels[chosen])


def shown_noise(card: ModelCard, reporter: Reporter) -> Shown:
    """Show images of random pixels, of several sizes."""
    reporter.say("Without --data only random images are compared: no accuracy is certified.")
    side = card.preprocessing.stored_side
    images = noise_images(card.preprocessing.channels, (side // 3 + 1, side, side + 33, 2 * side + 1))
    return Shown(
        "random pixels", lambda: iter(images), [f"random image {i}, {x.shape[0]}×{x.shape[1]}" for i, x in enumerate(images)], None
    )


@dataclass(frozen=True)
class Calibration:
    """Images that ranges are measured on, as the model sees them: uint8 (n, C, h, w); `record` says which."""

    images_u8: Tensor
    record: dict[str, Any]


def calibration_images(
    data: str | Path, calibrate: str | Path | None, part: ImageSplit, card: ModelCard, reporter: Reporter
) -> tuple[Calibration, npt.NDArray[np.int64]]:
    """Draw calibration images for a model that is compared on `part` of `data`; return them, and the positions in `part` to compare on.

    They come from `calibrate`, else from the train part of `data`, else are set aside from `part`. Raises DataError where there are
    fewer than FEWEST_IMAGES, or images of classes that the model does not know.
    """
    pool = _training_part(data if calibrate is None else calibrate, card, reporter, all_is_train=calibrate is not None)
    positions = np.arange(len(part))
    source = data if calibrate is None else calibrate
    if pool is None:
        pool = part
        drawn = np.random.default_rng(SEED).permutation(len(part))[: min(NUM_IMAGES, max(FEWEST_IMAGES, len(part) // _SHARE))]
        taken = {part.digests[index].tobytes() for index in drawn.tolist()}  # copies of an image go with it
        positions = np.array([i for i, digest in enumerate(part.digests) if digest.tobytes() not in taken], dtype=np.int64)
        reporter.say(f"{data} has one part: {len(drawn)} images are set aside for calibration, {len(positions)} are compared.")
    else:
        compared = {digest.tobytes() for digest in part.digests}
        others = np.array([i for i, digest in enumerate(pool.digests) if digest.tobytes() not in compared], dtype=np.int64)
        drawn = np.random.default_rng(SEED).permutation(others)[:NUM_IMAGES]
    if len(drawn) < FEWEST_IMAGES or not len(positions):
        raise DataError(
            f"{source} has too few images to calibrate int8 with.",
            got=f"{len(drawn)} for calibration, {len(positions)} to compare on",
            allowed=f"{FEWEST_IMAGES} and more for calibration, which are not compared on",
            remedy="--calibrate DATA: images of the classes that were trained on",
        )
    drawn = np.sort(drawn).tolist()
    record = {
        "images": f"{source}, {pool.name}",
        "num_images": len(drawn),
        "set_aside": pool is part,
        "seed": SEED,
        "keys": [pool.keys[index] for index in drawn],
    }
    return Calibration(torch.stack([card.preprocessing.place(pool.store[index]) for index in drawn]), record), positions


def _training_part(data: str | Path, card: ModelCard, reporter: Reporter, *, all_is_train: bool) -> ImageSplit | None:
    """Return the train part of a data set: its own, or the one that training makes of it; None where it is in one part."""
    listing = open_data(data)
    splits = load_images(listing, card, reporter, hold_out=False).splits
    if "train" in splits and (all_is_train or len(splits) > 1):
        return splits["train"]
    if all_is_train:
        return next(iter(splits.values()))
    if was_trained_on(splits.values(), card):
        splits = load_images(listing, card, reporter, hold_out=True).splits
    return splits.get("train") if len(splits) > 1 else None
