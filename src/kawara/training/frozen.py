"""Train a head on features that were computed once: what a frozen backbone makes possible.

A backbone that does not learn answers the same in every epoch. Each image goes through it once; what the head is given is kept, and an
epoch costs a small matrix product. Order of images, batches and steps are those of training with the whole model, so the result is the
same as if the features were computed anew each time.

Axes: n images, J heads (1, or 2 with a distillation token), D width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kawara.data.loading import Batch
from kawara.data.sampling import SamplerConfig, epoch_order, epoch_size
from kawara.models import Features, ImageModel
from kawara.models.interface import mean_of_heads


class FeatureLoader:
    """Serve features instead of images: `images` of a batch are (B, J, D).

    `epoch` gives them shuffled as `TrainLoader` does, iteration gives all of them in order as `EvalLoader` does.
    """

    def __init__(
        self, features: Tensor, labels: npt.NDArray[np.int64], *, batch_size: int, seed: int = 0, sampler: SamplerConfig | None = None
    ):
        assert len(features) == len(labels)
        self.features, self.labels, self.batch_size, self.seed = features, labels, batch_size, seed
        self.sampler = sampler or SamplerConfig()

    @property
    def num_batches(self) -> int:
        return max(1, epoch_size(len(self.labels), self.sampler) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the whole batches of `epoch` from number `start` on."""
        order, _ = epoch_order(len(self.labels), self.labels, epoch, self.seed, self.sampler)
        for number in range(start, self.num_batches):
            yield self._batch(order[number * self.batch_size : (number + 1) * self.batch_size])

    def __iter__(self) -> Iterator[Batch]:
        order = np.arange(len(self.labels), dtype=np.int64)
        for start in range(0, len(order), self.batch_size):
            yield self._batch(order[start : start + self.batch_size])

    def _batch(self, indices: npt.NDArray[np.int64]) -> Batch:
        device = self.features.device
        return Batch(
            self.features[torch.from_numpy(indices).to(device)],
            torch.from_numpy(self.labels[indices]).to(device),
            torch.from_numpy(indices),
        )


class Heads(nn.Module):
    """The heads of a model as a model of their own: features (B, J, D) to logits (B, K). Shares its parameters with the model."""

    def __init__(self, model: ImageModel):
        super().__init__()
        self._model = [model]  # in a list: the backbone is no part of this module's state
        self.parts = nn.ModuleList(part for name in model.head_names if (part := _submodule(model, name)) is not None)

    def forward(self, features: Tensor) -> Tensor:
        distillation = features[:, 1] if features.shape[1] > 1 else None
        return mean_of_heads(self._model[0].apply_heads(Features(features, (0, 0), 0, features[:, 0], distillation)))

    def head_parameters(self) -> set[str]:
        """Return the names of all parameters."""
        return {name for name, _ in self.named_parameters()}

    def no_decay(self) -> set[str]:
        """Return nothing beyond what the number of axes says: biases are not decayed."""
        return set()


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    for part in name.split("."):
        model = getattr(model, part, None)  # type: ignore[assignment]
        if model is None:
            return None
    return model
