"""What a model looks for first: the filters that turn pixels into features.

Patch embedding (ViT, arXiv 2010.11929, fig. 7 left): its D filters of P·P·C numbers, less their mean, are the rows of a matrix; the right
singular vectors of that matrix are the principal components, most variance first. The sign of a component is arbitrary; here its entry
of largest magnitude is positive. Convolutional stems and CNNs: the kernels of the first convolution as they are.

Axes: C channels, P side of a patch or kernel, D filters, n filters shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kawara.errors import ConfigError
from kawara.layers.patch import PatchProjection
from kawara.models import ImageModel

Floats = NDArray[np.floating[Any]]

NUM_COMPONENTS = 28


@dataclass(frozen=True)
class Filters:
    """The first filters of a model: principal components of a patch embedding, or kernels of a convolution."""

    tiles: Floats
    """(n, P, P, C) float64."""
    kind: Literal["components", "kernels"]
    explained: Floats | None
    """(n,) share of the variance of all filters, of components; None for kernels."""
    place: str
    num_filters: int
    """D, of which the tiles show all or the most important."""


def first_filters(model: ImageModel, num_components: int = NUM_COMPONENTS) -> Filters:
    """Return the filters that `model` applies to the pixels. Raises ConfigError where no layer takes the pixels as they are."""
    for place, module in model.named_modules():
        if isinstance(module, PatchProjection):
            tiles, explained = principal_filters(module.weight, num_components)
            return Filters(tiles, "components", explained, place, len(module.weight))
        if isinstance(module, nn.Conv2d) and module.weight.shape[1] == model.config.channels:
            kernels = module.weight.detach().cpu().double().permute(0, 2, 3, 1).numpy()
            return Filters(kernels, "kernels", None, place, len(kernels))
    raise ConfigError("This model has no layer that filters the pixels.", got=type(model).__name__)


@torch.no_grad()
def principal_filters(weight: Tensor, num_components: int = NUM_COMPONENTS) -> tuple[Floats, Floats]:
    """Return the principal components of filters (D, C, P, P) as unit tiles (n, P, P, C), and the share of variance of each (n,).

    There are at most min(D − 1, C·P²) components.
    """
    filters = weight.cpu().double().permute(0, 2, 3, 1)  # (D, P, P, C)
    rows = filters.flatten(1)
    _, singular_values, components = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    variance = singular_values.square()
    count = min(num_components, len(rows) - 1, rows.shape[1])
    components = components[:count]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    components = components * torch.where(largest < 0, -1.0, 1.0)
    return components.unflatten(1, filters.shape[1:]).numpy(), (variance / variance.sum())[:count].numpy()
