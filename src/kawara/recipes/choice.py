"""Which image size, model and length to take when nobody said: from the images, their number, the device and the time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from kawara import models
from kawara.analysis.cost import vit_macs
from kawara.data.survey import Survey
from kawara.training.schedule import Duration

LARGEST_SMALL_PX = 96
MIN_EPOCHS = 8
SIZES = {"femto": 0, "pico": 1_000, "nano": 10_000, "micro": 20_000, "milli": 50_000}
"""Model sizes from small to large, and the number of images from which each is worth its cost."""


@dataclass(frozen=True)
class Choice:
    """What kawara would do, and why in one sentence."""

    recipe: str
    model: str
    image_size: int
    length: str
    val_fraction: float
    reason: str


def choose(survey: Survey, length: Duration | None, device: torch.device) -> Choice:
    """Choose for a data set: small images keep their size, photos are reduced to what the device can train on.

    For a length in minutes the speed of this machine is measured (about a second), and the largest model is taken that
    sees every image at least `MIN_EPOCHS` times.
    """
    image_size, size_reason = _image_size(survey, device)
    stride = 2 if image_size <= 16 else 4 if image_size <= 24 else 8 if image_size <= 96 else 16
    names = [f"vit_{size}_conv_{stride}" for size, worth_from in SIZES.items() if survey.num_images >= worth_from]
    if length is None or length.unit != "minutes":
        name, time_reason = names[-1] if device.type == "cuda" else names[:2][-1], ""  # on a CPU: an hour, not a night
    else:
        epochs = _epochs_in(length.amount * 60, names, image_size, survey.num_images, device)
        name = max((name for name in names if epochs[name] >= MIN_EPOCHS), key=names.index, default=names[0])
        time_reason = f"; in {length.amount:g} minutes this machine shows it every image about {epochs[name]:.0f} times"
    reason = (
        f"{survey.num_images:,} images of {survey.num_classes} classes; {size_reason}{time_reason}; "
        "a convolutional stem, because it learns faster than patches from this many images"
    )
    return Choice("small", name, image_size, f"{_epochs(survey.num_images)} epochs", _val_fraction(survey), reason)


def _image_size(survey: Survey, device: torch.device) -> tuple[int, str]:
    side = survey.shorter_side_px
    if side <= LARGEST_SMALL_PX:
        image_size = max(8, -(-side // 4) * 4)
        return image_size, f"images of {side} px are used at {image_size} px"
    if device.type == "cuda":
        return 224, f"photos of about {side} px are reduced to 224 px"
    return 128, f"photos of about {side} px are reduced to 128 px, which a CPU can train on"


def _epochs_in(seconds: float, names: list[str], image_size: int, num_images: int, device: torch.device) -> dict[str, float]:
    """Estimate how many epochs of each model fit: the speed of the middle one is measured, the cost of the others is known."""
    macs = {name: vit_macs(models.model_config(name, num_classes=10, image_size=image_size)) for name in names}
    measured = names[len(names) // 2]
    seconds_per_mac = _seconds_per_image(measured, image_size, device) / macs[measured]
    return {name: seconds / (num_images * macs[name] * seconds_per_mac) for name in names}


def _seconds_per_image(name: str, image_size: int, device: torch.device, batch: int = 64) -> float:
    """Time forward and backward of a batch of noise, the best of three after one to warm up."""
    model = models.create_model(name, num_classes=10, image_size=image_size).to(device).train()
    image = torch.randn(batch, 3, image_size, image_size, device=device)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        model(image).logsumexp(dim=-1).sum().backward()
        next(model.parameters()).grad.sum().item()  # type: ignore[union-attr]  waits for a GPU
        times.append(time.perf_counter() - started)
    return min(times[1:]) / batch


def _epochs(num_images: int) -> int:
    """Return how often to show each image: about 1.5 million showings in all, but no image more than 150 times."""
    return max(20, min(150, round(1_500_000 / max(num_images, 1) / 10) * 10))


def _val_fraction(survey: Survey) -> float:
    """Return the share to hold out: 2,500 images (25 a class) tell accuracies apart by a point, but never more than 15 %."""
    wanted = max(2_500, 25 * survey.num_classes) / max(survey.num_images, 1)
    return round(min(0.15, wanted), 4)
