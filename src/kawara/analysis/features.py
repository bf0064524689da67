"""What a backbone makes of every image of a split: computed once, then used by all that needs no gradient through it.

k-NN, few-shot classifiers and a head on a frozen backbone see the same vectors again and again; to run the backbone once saves the rest.

Axes: n images, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kawara.data.cache import ProgressCallback
from kawara.data.loading import EvalLoader
from kawara.errors import UserError
from kawara.models import ImageModel


@dataclass(frozen=True)
class PooledFeatures:
    """Features and labels of all images of a split, in its order, on the CPU."""

    pooled: Tensor
    """(n, D) float32: what the head is given."""
    labels: Tensor
    """(n,) int64."""
    distillation: Tensor | None = None
    """(n, D) float32: what the second head is given, in a model with a distillation token."""

    @property
    def joined(self) -> Tensor:
        """(n, D); with two heads (n, 2 D), class token first: all that a linear classifier could be given."""
        return self.pooled if self.distillation is None else torch.cat([self.pooled, self.distillation], dim=1)

    @property
    def by_head(self) -> Tensor:
        """(n, J, D): what each of the J heads is given, class token first."""
        return torch.stack([self.pooled] if self.distillation is None else [self.pooled, self.distillation], dim=1)


def extract(
    model: ImageModel, loader: EvalLoader, dtype: torch.dtype | None = None, *, progress: ProgressCallback | None = None
) -> PooledFeatures:
    """Run the backbone of `model` over every image of a split, in evaluation mode.

    What is kept are 4 n D bytes (8 n D with two heads) and the labels; images and tokens live for one batch. The result is made of
    ordinary tensors, on which a head can be trained.

    Args:
        model: with or without a head, on the device of the loader.
        dtype: autocast type, None for plain float32.
        progress: called with (images done, images in all, "") after every batch.

    Raises:
        UserError: a feature is not finite; the message names the image.
    """
    num_images, split = len(loader.split), loader.split
    pooled = torch.empty(num_images, model.num_features)
    distillation: Tensor | None = None
    labels = torch.from_numpy(split.labels).clone()
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        done = 0
        for batch in loader:
            with torch.inference_mode(), torch.autocast(batch.images.device.type, dtype=dtype, enabled=dtype is not None):
                features = model.features(batch.images)
            rows = slice(done, done + len(batch.images))
            pooled[rows] = features.pooled.float()
            finite = pooled[rows].isfinite().all(dim=1)
            if features.distillation is not None:
                distillation = torch.empty_like(pooled) if distillation is None else distillation
                distillation[rows] = features.distillation.float()
                finite &= distillation[rows].isfinite().all(dim=1)
            if not finite.all():
                raise UserError(
                    f"The model's features of {split.keys[done + int(finite.int().argmin())]} are not finite.",
                    got="damaged weights" if dtype is None else f"damaged weights, or values too large for {dtype}",
                    remedy="the original model file" if dtype is None else "--device cpu, which computes in float32",
                )
            done = rows.stop
            if progress is not None:
                progress(done, num_images, "")
    finally:
        for module, was_training in training.items():
            module.training = was_training  # one by one: a frozen part of a model in training stays in evaluation mode
    return PooledFeatures(pooled, labels, distillation)
