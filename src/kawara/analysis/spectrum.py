"""Which spatial frequencies a layer keeps, and how much its maps vary: does attention smooth, does convolution sharpen?

Park and Kim, arXiv 2202.06709, figs. 2a, 8 and 9, computed as in their notebooks. The model is cut into sub-blocks: the embedding, and the
stream after every branch (of a CNN: after every block). The prefix is dropped, the tokens become maps (B, D, h, w):

    Δ log amplitude     a = log(|fft2| + 1e-6), zero frequency rolled to the middle, averaged over images and channels; its diagonal from
                        the middle on, less its first element. Below 0 and falling with depth: a low-pass filter
    variance            over the places of each channel (divisor h·w − 1), averaged over images and channels

Differs from their plots: the k-th frequency of a map of h cells stands at what it is, 2πk/h, so that the last one lies below π.

Axes: B batch, D width, h w grid, S sub-blocks, F = ⌈min(h, w)/2⌉ frequencies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kawara.analysis.evaluation_mode import evaluating
from kawara.analysis.places import Layout, as_map, block_places, token_layout
from kawara.errors import DataError
from kawara.layers import taps
from kawara.layers.residual import Block
from kawara.models import ImageModel

Floats = NDArray[np.floating[Any]]
SubBlock = Literal["embedding", "attention", "mlp", "block"]


@dataclass(frozen=True)
class Spectra:
    """Frequencies and variance of the stream, from the embedding to the last block."""

    places: tuple[str, ...]
    kinds: tuple[SubBlock, ...]
    """What came before each place."""
    frequency: tuple[Floats, ...]
    """Of each place (F,), in units of π: 0 is the mean, 1 alternates from cell to cell."""
    log_amplitude: tuple[Floats, ...]
    """Of each place (F,): Δ log amplitude; 0 at frequency 0."""
    variance: Floats
    """(S,)."""
    num_images: int

    @property
    def at_highest(self) -> Floats:
        """(S,): Δ log amplitude at the highest frequency."""
        return np.array([amplitude[-1] for amplitude in self.log_amplitude])


def sub_blocks(model: ImageModel) -> list[tuple[str, SubBlock]]:
    """Return the places where the stream is looked at, with what came before: embedding, then attention and MLP, or whole blocks."""
    blocks = block_places(model)
    found: list[tuple[str, SubBlock]] = [(f"{blocks[0]}:input", "embedding")]
    for place in blocks:
        if isinstance(model.get_submodule(place), Block):
            found.append((f"{place}.skip1", "attention"))
            found.append((f"{place}.skip2", "mlp"))
        else:
            found.append((place, "block"))
    return found


@torch.no_grad()
def spectra(model: ImageModel, batches: Iterable[Tensor]) -> Spectra:
    """Measure amplitudes and variances on batches of normalised images (B, C, H, W) of one size."""
    places, kinds = zip(*sub_blocks(model))
    amplitudes: dict[str, Tensor] = {}
    variances: dict[str, Tensor] = {}
    num_images = 0
    for image in batches:
        with evaluating(model), taps.read(model, *places, keep=partial(_summed, layout=token_layout(model, image))) as found:
            model.features(image)
        for place in places:
            amplitude, variance = found[place]
            amplitudes[place] = amplitudes[place] + amplitude if place in amplitudes else amplitude
            variances[place] = variances[place] + variance if place in variances else variance
        num_images += len(image)
    if not num_images:
        raise DataError("There are no images to measure frequencies on.")
    means = [amplitudes[place] / num_images for place in places]
    return Spectra(
        places,
        kinds,
        tuple(_frequencies(mean.shape) for mean in means),
        tuple(delta_log_amplitude(mean) for mean in means),
        np.array([float(variances[place]) / num_images for place in places]),
        num_images,
    )


def log_amplitude(maps: Tensor) -> Tensor:
    """Return log(|fft2| + 1e-6) of maps (..., h, w), zero frequency at (⌊h/2⌋, ⌊w/2⌋)."""
    amplitude = (torch.fft.fft2(maps).abs() + 1e-6).log()
    return amplitude.roll((maps.shape[-2] // 2, maps.shape[-1] // 2), dims=(-2, -1))


def delta_log_amplitude(amplitude: Tensor) -> Floats:
    """Return what lies on the diagonal (F,) of a centred amplitude (h, w) from zero frequency on, relative to zero frequency."""
    h, w = amplitude.shape
    diagonal = amplitude[h // 2 :, w // 2 :].diagonal()
    return (diagonal - diagonal[0]).numpy()


def _frequencies(size: tuple[int, ...]) -> Floats:
    """Return the frequencies on the diagonal (F,) in units of π; of a map that is not square, the mean of both directions."""
    h, w = size
    return np.arange(min(h - h // 2, w - w // 2)) * (1 / h + 1 / w)


def _summed(activation: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the log amplitude (h, w) and the variance of an activation, averaged over channels, summed over images."""
    maps = as_map(activation, layout).float()
    amplitude = log_amplitude(maps).mean(dim=1).double().sum(dim=0)
    return amplitude.cpu(), maps.var(dim=(-2, -1)).mean(dim=1).double().sum().cpu()
