"""Which image size, length and model to take when nobody said: from the images, their number, the device and the time."""

from __future__ import annotations

import time

import torch

from kawara import models
from kawara.analysis.cost import vit_macs
from kawara.data.survey import Survey
from kawara.training.schedule import Duration

LARGEST_SMALL_PX = 96
ENLARGED_PX = 16
"""Tiny images become this large: a shift by one pixel is then a small one, and two convolutions make the 16 tokens instead of one."""
SHOWINGS = {"femto": 0, "pico": 300_000, "nano": 2_000_000, "micro": 4_000_000, "milli": 8_000_000}
"""How often images must be shown in all before this size overtakes the one before it: a judgement from docs/lab-log.md."""
SHOWINGS_ON_CPU, SHOWINGS_ON_GPU = 1_500_000, 10_000_000
SHOWINGS_OF_FINETUNING_ON_CPU, SHOWINGS_OF_FINETUNING_ON_GPU = 20_000, 200_000


def image_size(found: Survey, device: torch.device, *, enlarge: bool = False) -> tuple[int, str]:
    """Return the side in px and why: small images keep their size, photos are reduced to what the device can train on.

    With `enlarge`, tiny images become 16 px: where the model, and so the stride of its stem, is chosen afterwards.
    """
    side = found.shorter_side_px
    if enlarge and side < ENLARGED_PX:
        return ENLARGED_PX, f"tiny images of {side} px are enlarged to {ENLARGED_PX} px"
    if side <= LARGEST_SMALL_PX:
        size = max(8, -(-side // 4) * 4)
        return size, f"images of {side} px are used at {size} px"
    size = 224 if device.type == "cuda" else 128
    return size, f"photos of about {side} px are reduced to {size} px" + ("" if device.type == "cuda" else " to be trained without a GPU")


def jitter(found: Survey, image_size: int) -> dict[str, float]:
    """Return the settings by which tiny images that are enlarged vary more than others, {} for others.

    Each is turned, and shifted by up to half a pixel of 16, either way: fewer errors, see docs/lab-log.md.
    """
    is_enlarged = found.shorter_side_px < ENLARGED_PX <= image_size
    return {"augment.rotation_degrees": 12.0, "augment.translation": 0.03} if is_enlarged else {}


def model(found: Survey, image_size: int, length: Duration, device: torch.device, batch_size: int) -> tuple[str, str]:
    """Return the name of a model with a convolutional stem, and why: the largest that sees enough images in the length of the run.

    For a length in minutes the speed of this machine is measured, which takes about a second.
    """
    stride = 2 if image_size < ENLARGED_PX else 4 if image_size <= 24 else 8 if image_size <= LARGEST_SMALL_PX else 16
    names = {f"vit_{size}_conv_{stride}": enough for size, enough in SHOWINGS.items()}
    if length.unit == "minutes":
        showings = _showings_in(length.amount * 60, list(names), image_size, found, device)
    else:
        steps = length.steps(max(1, found.num_images // batch_size)) or 0
        showings = dict.fromkeys(names, float(steps * batch_size))
    name = [name for name, enough in names.items() if showings[name] >= enough][-1]
    why = "a convolutional stem, which learns faster than patches from this many images"
    if length.unit == "minutes":
        epochs = showings[name] / found.num_images
        why += f"; in {length.amount:g} minutes this machine can show each image about {epochs:.0f} times"
    return name, why


def length(found: Survey, device: torch.device) -> str:
    """Return how long to train: so many showings in all, but each image at least 20 and at most 150 times."""
    showings = SHOWINGS_ON_GPU if device.type == "cuda" else SHOWINGS_ON_CPU
    return f"{max(20, min(150, round(showings / max(found.num_images, 1) / 10) * 10))} epochs"


def finetuning_length(found: Survey, device: torch.device) -> str:
    """Return how long to fine-tune: every image 8 times where they are few, 4 times where they are many."""
    showings = SHOWINGS_OF_FINETUNING_ON_GPU if device.type == "cuda" else SHOWINGS_OF_FINETUNING_ON_CPU
    return f"{max(4, min(8, round(showings / max(found.num_images, 1))))} epochs"


def val_fraction(found: Survey) -> float:
    """Return the share to hold out: 2,500 images (25 a class) tell accuracies apart by a point, but never more than 15 %."""
    wanted = max(2_500, 25 * found.num_classes) / max(found.num_images, 1)
    return round(min(0.15, wanted), 4)


def _showings_in(seconds: float, names: list[str], image_size: int, found: Survey, device: torch.device) -> dict[str, float]:
    """Estimate how many images each model can be shown: the speed of one is measured, the cost of the others is known."""
    channels = 1 if found.is_grey else 3
    macs = {name: vit_macs(models.model_config(name, num_classes=10, image_size=image_size, channels=channels)) for name in names}
    measured = names[1]
    seconds_per_mac = _seconds_per_image(measured, image_size, channels, device) / macs[measured]
    return {name: seconds / (macs[name] * seconds_per_mac) for name in names}


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
