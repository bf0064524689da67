"""What was measured on other data sets, to say before a run what can be expected of it.

Every row was run by kawara and is in docs/results.md or docs/lab-log.md. A row is near a run if both begin from scratch or both with a
pretrained model, and images a class, number of classes and image size differ by little on a logarithmic scale:

    distance = |log₁₀ n/n'| + 2 |log₁₀ K/K'| + ½ |log₂ s/s'| + 1 if only one of them is grey     n: training images a class, s: side in px

What the nearest rows gave is not a promise: how hard the images are counts for more than how many there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NEAR = 1.0
NUM_NEAREST = 3


@dataclass(frozen=True)
class KnownResult:
    """One run. `top1` is the accuracy in [0, 1] on images that took no part in training, the median where there were several seeds."""

    data: str
    num_images: int
    """Training images."""
    num_classes: int
    image_size_px: int
    grey: bool
    pretrained: bool
    how: str
    top1: float
    command: str


KNOWN_RESULTS = (
    KnownResult(
        "Fashion-MNIST", 57_500, 10, 28, True, False, "recipe small, 15 minutes", 0.919, "kawara train fashion_mnist --minutes 15"
    ),
    KnownResult(
        "Fashion-MNIST", 57_500, 10, 28, True, False, "recipe small, 5 minutes", 0.912, "kawara train fashion_mnist --minutes 5"
    ),
    KnownResult("handwritten digits", 1_274, 10, 16, True, False, "recipe small, 150 epochs", 0.996, "kawara train digits"),
    KnownResult(
        "CIFAR-10, 6 classes of 450", 1_899, 6, 32, False, False, "recipe small, 5 minutes, 36 epochs", 0.599,
        "kawara train six --minutes 5",
    ),
    KnownResult(
        "ants and bees", 195, 2, 128, False, False, "recipe small, 4 minutes, 61 epochs", 0.748, "kawara train hymenoptera --minutes 4"
    ),
    KnownResult(
        "Imagenette, 1,280 photos", 1_280, 10, 128, False, False, "recipe small, 4 minutes, 5 epochs", 0.453,
        "kawara train imagenette224 --minutes 4",
    ),
    KnownResult(
        "ants and bees", 195, 2, 224, False, True, "DeiT-Ti, new head", 0.976,
        "kawara train hymenoptera --pretrained deit_tiny.safetensors --freeze backbone",
    ),
    KnownResult(
        "ants and bees", 195, 2, 224, False, True, "DeiT-Ti, fine-tuned", 0.967,
        "kawara train hymenoptera --pretrained deit_tiny.safetensors",
    ),
    KnownResult(
        "Imagenette, 1,280 photos", 1_280, 10, 224, False, True, "DeiT-Ti, new head", 0.978,
        "kawara train imagenette224 --pretrained deit_tiny.safetensors --freeze backbone",
    ),
    KnownResult(
        "Imagenette, 1,280 photos", 1_280, 10, 64, False, False, "a small ResNet, 2 minutes", 0.208,
        "kawara train imagenette224 --model resnet_micro --image-size 64 --minutes 2",
    ),
)  # fmt: skip
"""Every row: data set, training images, classes, side in px, grey, pretrained, how, top-1, command."""


def nearest_results(num_images: int, num_classes: int, image_size_px: int, *, grey: bool, pretrained: bool) -> list[KnownResult]:
    """Return up to three rows near a run, the nearest first; none where nothing like it was measured."""

    def distance(row: KnownResult) -> float:
        per_class = (num_images / num_classes) / (row.num_images / row.num_classes)
        return (
            abs(math.log10(per_class))
            + 2 * abs(math.log10(num_classes / row.num_classes))
            + 0.5 * abs(math.log2(image_size_px / row.image_size_px))
            + (1.0 if grey != row.grey else 0.0)
        )

    rows = [row for row in KNOWN_RESULTS if row.pretrained == pretrained and distance(row) <= NEAR]
    return sorted(rows, key=distance)[:NUM_NEAREST]
