"""Which image size, model and recipe to take when nobody said: from the images, their number, the device and the time."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.survey import Survey
from ..training.schedule import Duration

LARGEST_SMALL_PX = 96


@dataclass(frozen=True)
class Choice:
    """What kawara would do, and why in one sentence."""

    recipe: str
    model: str
    image_size: int
    length: str
    val_fraction: float
    reason: str


def choose(survey: Survey, length: Duration | None, device_type: str) -> Choice:
    """Choose for a data set: small images keep their size, photos are reduced to what the device can train on."""
    side = survey.shorter_side_px
    if side <= LARGEST_SMALL_PX:
        image_size = max(8, -(-side // 4) * 4)
        why_size = f"images of {side} px are used at {image_size} px"
    else:
        image_size = 224 if device_type == "cuda" else 128
        why_size = f"photos (median {side} px) are reduced to {image_size} px" + (
            "" if device_type == "cuda" else ", what a CPU can train on"
        )
    stride = 2 if image_size <= 16 else 4 if image_size <= 24 else 8 if image_size <= 96 else 16
    minutes = length.amount if length is not None and length.unit == "minutes" else None
    size = _size(survey.num_images, minutes, device_type)
    model = f"vit_{size}_conv_{stride}"
    budget = f" and {minutes:g} minutes" if minutes is not None else ""
    reason = (
        f"{survey.num_images:,} images of {survey.num_classes} classes{budget} on {device_type}: {why_size}; "
        f"a convolutional stem learns faster than patches on data sets of this size"
    )
    return Choice("small", model, image_size, f"{_epochs(survey.num_images)} epochs", _val_fraction(survey), reason)


def _epochs(num_images: int) -> int:
    """Return how often to show each image: about 1.5 million showings in all, but no image more than 150 times."""
    return max(20, min(150, round(1_500_000 / max(num_images, 1) / 10) * 10))


def _val_fraction(survey: Survey) -> float:
    """Return the share to hold out: 2,500 images (25 a class) tell accuracies apart by a point, but never more than 15 %."""
    wanted = max(2_500, 25 * survey.num_classes) / max(survey.num_images, 1)
    return round(min(0.15, wanted), 4)


def _size(num_images: int, minutes: float | None, device_type: str) -> str:
    if device_type == "cuda":
        return "tiny" if num_images >= 20_000 else "micro"
    if num_images < 5_000:
        return "pico"
    return "pico" if minutes is not None and minutes < 10 else "nano"
