"""Which image size, model and length to take when nobody said: from the images, their number, the device and the time."""

from __future__ import annotations

import time

import torch

from kawara import models
from kawara.analysis.cost import vit_macs
from kawara.data.survey import Survey
from kawara.training.schedule import Duration

LARGEST_SMALL_PX = 96
MIN_EPOCHS = 6
SIZES = {"femto": 0, "pico": 1_000, "nano": 10_000, "micro": 20_000, "milli": 50_000}
"""Model sizes from small to large, and the number of images from which each is worth its cost."""


def image_size(found: Survey, device: torch.device) -> tuple[int, str]:
    """Return the side in px and why: small images keep their size, photos are reduced to what the device can train on."""
    side = found.shorter_side_px
    if side <= LARGEST_SMALL_PX:
        size = max(8, -(-side // 4) * 4)
        return size, f"images of {side} px are used at {size} px"
    size = 224 if device.type == "cuda" else 128
    return size, f"photos of about {side} px are reduced to {size} px" + ("" if device.type == "cuda" else " to be trained without a GPU")


def model(found: Survey, image_size: int, length: Duration | None, device: torch.device) -> tuple[str, str]:
    """Return the name of a model with a convolutional stem, and why.

    For a length in minutes the speed of this machine is measured (about a second), and the largest model is taken that sees
    every image at least `MIN_EPOCHS` times. Otherwise the number of images decides; without a GPU it stays with the smallest
    two, which take an hour, not a night.
    """
    stride = 2 if image_size <= 16 else 4 if image_size <= 24 else 8 if image_size <= LARGEST_SMALL_PX else 16
    names = [f"vit_{size}_conv_{stride}" for size, worth_from in SIZES.items() if found.num_images >= worth_from]
    stem = "a convolutional stem, which learns faster than patches from this many images"
    if length is None or length.unit != "minutes":
        return (names if device.type == "cuda" else names[:2])[-1], stem
    epochs = _epochs_in(length.amount * 60, names, image_size, found, device)
    name = max((name for name in names if epochs[name] >= MIN_EPOCHS), key=names.index, default=names[0])
    return name, f"{stem}; in {length.amount:g} minutes this machine shows it every image about {epochs[name]:.0f} times"


def length(found: Survey) -> str:
    """Return how long to train: about 1.5 million showings in all, but no image fewer than 20 or more than 150 times."""
    return f"{max(20, min(150, round(1_500_000 / max(found.num_images, 1) / 10) * 10))} epochs"


def val_fraction(found: Survey) -> float:
    """Return the share to hold out: 2,500 images (25 a class) tell accuracies apart by a point, but never more than 15 %."""
    wanted = max(2_500, 25 * found.num_classes) / max(found.num_images, 1)
    return round(min(0.15, wanted), 4)


def _epochs_in(seconds: float, names: list[str], image_size: int, found: Survey, device: torch.device) -> dict[str, float]:
    """Estimate how many epochs of each model fit: the speed of the middle one is measured, the cost of the others is known."""
    channels = 1 if found.is_grey else 3
    macs = {name: vit_macs(models.model_config(name, num_classes=10, image_size=image_size, channels=channels)) for name in names}
    measured = names[len(names) // 2]
    seconds_per_mac = _seconds_per_image(measured, image_size, channels, device) / macs[measured]
    return {name: seconds / (found.num_images * macs[name] * seconds_per_mac) for name in names}


def _seconds_per_image(name: str, image_size: int, channels: int, device: torch.device, batch: int = 64) -> float:
    """Time forward and backward of a batch of noise, the best of three after one to warm up."""
    network = models.create_model(name, num_classes=10, image_size=image_size, channels=channels).to(device).train()
    image = torch.randn(batch, channels, image_size, image_size, device=device)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        network(image).logsumexp(dim=-1).sum().backward()
        next(network.parameters()).grad.sum().item()  # type: ignore[union-attr]  waits for a GPU
        times.append(time.perf_counter() - started)
    return min(times[1:]) / batch
