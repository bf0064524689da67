"""Image classification: soft-target cross-entropy is minimised, accuracy and calibration are reported."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kawara.data.loading import Batch
from kawara.data.mixing import MixConfig, mix


@dataclass(frozen=True)
class ClassificationConfig:
    """What the classifier is trained towards."""

    label_smoothing: float = 0.0
    mix: MixConfig = field(default_factory=MixConfig)


def soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return −Σₖ yₖ log softmax(z)ₖ averaged over the batch, for logits and targets (B, K)."""
    return -(targets * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()


class Classification:
    """The task of naming the class of an image."""

    def __init__(self, config: ClassificationConfig, num_classes: int, seed: int):
        self.config, self.num_classes, self.seed = config, num_classes, seed

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Return the loss of one training batch and how many of its images were called right (by the larger label share)."""
        images, targets = mix(
            batch.images,
            batch.labels,
            self.config.mix,
            num_classes=self.num_classes,
            smoothing=self.config.label_smoothing,
            seed=self.seed,
            step=step,
        )
        logits = model(images)
        right = (logits.detach().argmax(dim=-1) == targets.argmax(dim=-1)).sum()
        return soft_target_cross_entropy(logits, targets), right


@torch.inference_mode()
def classify(model: nn.Module, batches: Iterable[Batch], dtype: torch.dtype | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (n, K) float32 and labels (n,) of all batches, with the model in evaluation mode."""
    was_training = model.training
    model.eval()
    probabilities, labels = [], []
    try:
        for batch in batches:
            with torch.autocast(batch.images.device.type, dtype=dtype, enabled=dtype is not None):
                logits = model(batch.images)
            probabilities.append(logits.float().softmax(dim=-1).cpu())
            labels.append(batch.labels.cpu())
    finally:
        model.train(was_training)
    return torch.cat(probabilities).numpy(), torch.cat(labels).numpy()
