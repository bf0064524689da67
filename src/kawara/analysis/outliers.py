"""Tokens of very large norm: where a ViT keeps notes about the whole image in patches it finds redundant.

Darcet et al., arXiv 2309.16588: in large, long-trained ViTs the norms of the patch tokens fall into two groups; the few of very large norm
sit in the background, hold little of their own patch and spoil attention maps and dense features. Registers are the remedy.

The paper draws its threshold by hand into the valley of the histogram (150 in DINOv2-g). Here, unless given, it is drawn from the norms of
one layer: median · max(2, exp(4 · 1.4826 · MAD of the logarithms)), four robust deviations and at least twice the median, so that a
narrow distribution has no outliers merely for being narrow. The bimodality coefficient (SAS; skewness γ, kurtosis κ),

    b = (γ² + 1) / κ        1 for two points, 5/9 for a uniform distribution, 1/3 for a normal one

says whether two groups are likely (b > 5/9); a single long tail raises it, too.

Axes: n images, h w grid, S layers, B batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kawara.analysis.evaluation_mode import evaluating
from kawara.analysis.places import Layout, as_map, block_places, token_layout
from kawara.errors import DataError
from kawara.layers import taps
from kawara.models import ImageModel

Floats = NDArray[np.floating[Any]]

BIMODAL_FROM = 5 / 9
MIN_RATIO_TO_MEDIAN = 2.0
NUM_DEVIATIONS = 4.0
_MAD_TO_DEVIATION = 1.4826


@dataclass(frozen=True)
class TokenNorms:
    """The norms of all patch tokens of several layers."""

    places: tuple[str, ...]
    norms: tuple[Floats, ...]
    """Of each place (n, h, w) float32."""
    thresholds: Floats
    """(S,): above it a token counts as an outlier."""

    @property
    def shares(self) -> Floats:
        """(S,): the share of outliers among the tokens of each place."""
        return np.array([(norms > threshold).mean() for norms, threshold in zip(self.norms, self.thresholds)])

    @property
    def bimodality(self) -> Floats:
        """(S,): the bimodality coefficient of the logarithms of the norms."""
        return np.array([bimodality(np.log(np.maximum(norms, np.finfo(np.float32).tiny))) for norms in self.norms])

    def where(self, index: int = -1) -> Floats:
        """Return (h, w): the share of images with an outlier at each cell, in the layer of this index."""
        return (self.norms[index] > self.thresholds[index]).mean(axis=0)


@torch.no_grad()
def token_norms(
    model: ImageModel, batches: Iterable[Tensor], *, places: Sequence[str] | None = None, threshold: float | None = None
) -> TokenNorms:
    """Collect the norms of the patch tokens of each block.

    Memory: 4 bytes for each token of each place and image.

    Args:
        batches: normalised images (B, C, H, W) of one size.
        places: layers; None is every block.
        threshold: norm above which a token is an outlier; None draws one for each layer (`outlier_threshold`).
    """
    places = tuple(block_places(model) if places is None else places)
    parts: list[dict[str, Floats]] = []
    for image in batches:
        with evaluating(model), taps.read(model, *places, keep=partial(_norms, layout=token_layout(model, image))) as found:
            model.features(image)
        parts.append(found)
    if not parts:
        raise DataError("There are no images to measure norms on.")
    norms = tuple(np.concatenate([part[place] for part in parts]) for place in places)
    thresholds = [outlier_threshold(each) if threshold is None else threshold for each in norms]
    return TokenNorms(places, norms, np.array(thresholds))


def outlier_threshold(norms: Floats) -> float:
    """Return four robust deviations above the median of the norms, on a logarithmic scale, and at least twice the median."""
    logs = np.log(np.maximum(norms, np.finfo(np.float32).tiny))
    median = np.median(logs)
    deviation = _MAD_TO_DEVIATION * np.median(np.abs(logs - median))
    return float(np.exp(median) * max(MIN_RATIO_TO_MEDIAN, np.exp(NUM_DEVIATIONS * deviation)))


def bimodality(values: Floats) -> float:
    """Return the bimodality coefficient of a sample, NaN for one without spread."""
    centred = np.asarray(values, dtype=np.float64).ravel()
    centred = centred - centred.mean()
    variance = (centred**2).mean()
    if variance == 0:
        return float("nan")
    skewness, kurtosis = (centred**3).mean() / variance**1.5, (centred**4).mean() / variance**2
    return float((skewness**2 + 1) / kurtosis)


def _norms(activation: Tensor, layout: Layout) -> Floats:
    return as_map(activation, layout).float().norm(dim=1).cpu().numpy()
