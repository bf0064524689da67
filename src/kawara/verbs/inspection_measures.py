"""How many images each analysis of an inspection is given, so that its time is bounded, and the calls themselves.

Numbers of images depend on the multiply-adds of the model alone, not on the speed of the machine: the same command gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kawara.analysis.attribution import saliency, saliency_methods
from kawara.analysis.cost import count_macs
from kawara.analysis.faithfulness import Faithfulness, faithfulness
from kawara.analysis.observed_attention import attention_places
from kawara.analysis.places import depths
from kawara.analysis.receptive_field import ReceptiveFields, branches, receptive_fields
from kawara.analysis.robustness import Robustness, normalise, robustness
from kawara.analysis.skip import SkipRemoval, skip_removal
from kawara.data.loading import Batch
from kawara.errors import ConfigError
from kawara.models import ImageModel
from kawara.weights import ModelCard

MAX_IMAGES = 256
CKA_BATCH = 64
BATCH = 16
CHEAP_MAPS = ("gradient_rollout", "grad_cam")
"""In the order of preference, for the maps beside the answers: one backward pass each."""

_GIGA = 1e9
DROPS = ("drop_random", "drop_salient", "drop_non_salient")
STRENGTHS = {**dict.fromkeys(DROPS, (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)), "shuffle": (1, 2, 4, 8)}
NUM_DRAWS = 3


@dataclass(frozen=True)
class Subject:
    """A model and the images as it wants them, (n, C, h, w) uint8."""

    model: ImageModel
    card: ModelCard
    images_u8: Tensor
    labels: Tensor | None
    device: torch.device

    @property
    def has_attention(self) -> bool:
        return bool(attention_places(self.model))

    @property
    def has_head(self) -> bool:
        return bool(self.model.config.num_classes)

    @property
    def giga_macs(self) -> float:
        """Multiply-adds of one image in 10⁹."""
        return (count_macs(self.model) or 0) / _GIGA

    def normalised(self, indices: Sequence[int] | slice = slice(None)) -> Tensor:
        """Return the chosen images as the model takes them."""
        return self.card.preprocessing.normalise(self.images_u8[indices], self.device)

    def batches(self, num_images: int, size: int = BATCH) -> Iterator[Tensor]:
        """Yield the first images in batches of about one size, so that none is too small for CKA."""
        num_images = min(num_images, len(self.images_u8))
        for part in np.array_split(np.arange(num_images), -(-num_images // size)):
            yield self.normalised(part.tolist())

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Return one image (H, W, C) as the model sees it."""
        return np.ascontiguousarray(self.images_u8[index].permute(1, 2, 0).numpy())


def num_images_for(subject: Subject, passes: float, budget_giga_macs: float, least: int, most: int) -> int:
    """Return how many images an analysis of `passes` forward passes each is given, at most those that there are."""
    affordable = int(budget_giga_macs / max(passes * subject.giga_macs, 1e-9))
    return min(max(least, min(most, affordable)), len(subject.images_u8))


def num_for_statistics(subject: Subject) -> int:
    """Return the number of images for what takes a pass or two: all 256 up to ViT-S, a few dozen for ViT-L."""
    return num_images_for(subject, 1, 1200, 32, MAX_IMAGES)


def cheap_maps(subject: Subject, indices: Sequence[int]) -> tuple[str | None, NDArray[np.float32] | None]:
    """Return the best map that one backward pass gives, for each of the images: its method and (n, h, w)."""
    if not subject.has_head:
        return None, None
    method = next(name for name in CHEAP_MAPS if name in saliency_methods(subject.model))
    parts = [
        saliency(subject.model, subject.normalised(indices[start : start + BATCH]), method).maps for start in range(0, len(indices), BATCH)
    ]
    return method, np.concatenate(parts)


def scored_maps(subject: Subject, index: int) -> tuple[dict[str, NDArray[np.floating]], dict[str, Faithfulness]]:
    """Explain the answer to one image by every method, and measure each map."""
    image = subject.normalised([index])
    methods = [name for name in saliency_methods(subject.model) if name != "random"]
    maps = {method: saliency(subject.model, image, method).maps for method in methods}
    return {method: values[0] for method, values in maps.items()}, faithfulness(subject.model, image, maps)


def num_scored(subjects: Sequence[Subject], num_photos: int) -> int:
    """Return how many photos are scored: an occluded, deleted and inserted one takes about 400 passes at 14 × 14 cells."""
    cost = sum(400 * subject.giga_macs for subject in subjects)
    return min(num_photos, max(1, min(4, int(1600 / max(cost, 1e-9)))))


def fields(subject: Subject) -> tuple[ReceptiveFields, ReceptiveFields | None]:
    """Measure receptive fields at four depths, after the residual and, where the branch can be read, before it."""
    places = depths(subject.model)
    count = num_images_for(subject, 20, 600, 4, 32)
    after = receptive_fields(subject.model, subject.batches(count, 8), places=places)
    try:
        before = branches(subject.model, places)
    except (ConfigError, StopIteration):
        return after, None
    return after, receptive_fields(subject.model, subject.batches(count, 8), places=before)


def removal(subject: Subject, places: Sequence[str]) -> SkipRemoval:
    """Take the skip connections away one by one."""
    count = num_images_for(subject, len(places) + 1, 600, 8, 128)
    labels = None if subject.labels is None else subject.labels[:count]
    return skip_removal(subject.model, subject.batches(count, CKA_BATCH), labels, places=places)


def robust_to_loss(subject: Subject, guide: Subject, num_images: int) -> dict[str, Robustness]:
    """Paint or shuffle tiles of the first images. What is salient is asked of the model of `guide`."""
    labels = subject.labels
    assert labels is not None

    def salience(image_01: Tensor) -> Tensor:
        wanted = guide.card.preprocessing
        resized = F.interpolate(image_01, wanted.image_size, mode="bilinear", antialias=True, align_corners=False)
        method = next(name for name in CHEAP_MAPS if name in saliency_methods(guide.model))
        return torch.from_numpy(saliency(guide.model, normalise(resized, wanted), method).maps)

    same_color = subject.card.preprocessing.channels == guide.card.preprocessing.channels
    corruptions = (*DROPS, "shuffle") if same_color else ("drop_random", "shuffle")
    side = min(subject.card.preprocessing.image_size)
    tiles = min(14, max(2, side // 4))
    strengths = STRENGTHS | {"shuffle": tuple(count for count in STRENGTHS["shuffle"] if count <= side // 2)}
    return robustness(
        subject.model,
        (_batch(subject, labels, part) for part in np.array_split(np.arange(num_images), -(-num_images // BATCH))),
        subject.card.preprocessing,
        corruptions,
        strengths=strengths,
        num_draws=NUM_DRAWS,
        tiles=(tiles, tiles),
        salience=salience if same_color else None,
    )


def num_for_robustness(subjects: Sequence[Subject]) -> int:
    """Return the number of images for the robustness of all subjects: 42 passes an image."""
    return min(num_images_for(subject, 42, 2500, 24, MAX_IMAGES) for subject in subjects)


def _batch(subject: Subject, labels: Tensor, part: NDArray[np.int64]) -> Batch:
    indices = torch.from_numpy(part)
    return Batch(subject.normalised(part.tolist()), labels[indices].to(subject.device), indices)
