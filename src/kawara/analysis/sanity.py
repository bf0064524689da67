"""Does a saliency map depend on what the model has learnt? Parameter randomisation (Adebayo et al., arXiv 1810.03292, §4.1).

The parameters are replaced by noise from the head downwards, layer by layer. A map that stays as it was shows the image, not the model.

Differs from the paper: the noise has the mean and the deviation of each trained tensor instead of coming from the initialiser, because
heads start at zero here, and so that activations keep their scale. Buffers (statistics of batch norm) stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from kawara.errors import ConfigError
from kawara.models import ImageModel


@torch.no_grad()
def randomise_from_top(model: ImageModel, num_layers: int, *, seed: int = 0) -> ImageModel:
    """Return a copy of a model whose last `num_layers` layers are noise: 1 is the head with the final norm, 2 also the last block, …

    Layers are those of `layer_index`; `model.num_layers + 1` of them are everything. Layers keep their noise as more are added.
    """
    if not 0 <= num_layers <= model.num_layers + 1:
        raise ConfigError("There are not so many layers to randomise.", got=num_layers, allowed=f"0 to {model.num_layers + 1}")
    model = copy.deepcopy(model)
    parameters = sorted(model.named_parameters(), key=lambda named: -model.layer_index(named[0]))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters:
        if model.layer_index(name) > model.num_layers - num_layers:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.copy_(parameter.float().mean() + parameter.float().std(correction=0) * noise)
    return model


def randomisation_test(
    model: ImageModel, explain: Callable[[ImageModel], NDArray[np.floating]], num_layers: Sequence[int], *, seed: int = 0
) -> NDArray[np.float64]:
    """Return the rank correlation (len(num_layers), B) of `explain(model)` (B, h, w) before and after randomisation; 1 is: unchanged."""
    before = explain(model)
    return np.stack([rank_correlation(before, explain(randomise_from_top(model, count, seed=seed))) for count in num_layers])


def rank_correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return Spearman's correlation (B,) of maps (B, h, w), cell by cell; NaN where one of them is constant."""
    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (first, second)]
    ranks = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    norm = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
    return np.divide((ranks[0] * ranks[1]).sum(axis=1), norm, out=np.full(len(norm), np.nan), where=norm > 0)
