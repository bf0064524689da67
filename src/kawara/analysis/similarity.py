"""How alike two representations of the same images are: centred kernel alignment (CKA) with a linear kernel.

Raghu et al., arXiv 2108.08810, §3, after Kornblith et al., arXiv 1905.00414. For X (m, p) and Y (m, q), K = XXᵀ, L = YYᵀ:

    CKA = HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L))

HSIC is an inner product of centred Gram matrices, HSIC(K, L) = c · Σᵢⱼ K'ᵢⱼ L'ᵢⱼ, in one of two ways:

    biased      K' = HKH with H = I − 11ᵀ/m; at full size CKA = ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) on centred columns. Above 0 even for
                representations that have nothing to do with each other, and near 1 where p is much larger than m
    unbiased    (Song et al. 2012; Nguyen et al., arXiv 2010.15327) HSIC₁ over minibatches of n ≥ 4 images, with K̃ = K less its diagonal:
                [ tr(K̃L̃) + 1ᵀK̃1 · 1ᵀL̃1 / ((n−1)(n−2)) − 2/(n−2) · 1ᵀK̃L̃1 ] / (n(n−3))
                The three terms are averaged over the minibatches each for itself, then the ratio is formed

Differs from the usual code: K̃ is centred once for each layer so that HSIC₁ becomes a plain inner product, and all pairs of layers are
one matrix product. Token maps are flattened: an example is everything a layer holds of an image, prefix tokens included.

Memory: Gram matrices alone are kept, (layers) · n² numbers for a batch of n images, and one (layers)² sum; nothing grows with the number
of images. Each Gram matrix is made while the model runs, so that at no time more than a few layers of activations exist.

Axes: B = n images of a batch, S layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kawara.analysis.evaluation_mode import evaluating
from kawara.analysis.places import representation_layers
from kawara.errors import DataError
from kawara.layers import taps
from kawara.models import ImageModel

Floats = NDArray[np.floating[Any]]

MIN_IMAGES = 4


@dataclass(frozen=True)
class Similarity:
    """CKA of every layer of one model with every layer of the same or another one.

    Unbiased, so that layers which share nothing may fall a little below 0; NaN for a layer that gives every image the same.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cka: Floats
    """(rows, columns) float64."""
    num_images: int

    @property
    def lower_with_upper(self) -> float:
        """The mean over pairs of a layer of the lower and one of the upper half: high in a ViT, low in a CNN (Raghu et al., fig. 1)."""
        return float(np.nanmean(self.cka[: len(self.rows) // 2, len(self.columns) // 2 :]))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the biased CKA of X (m, p) and Y (m, q) in closed form, in float64."""
    x, y = _centred(x.double()), _centred(y.double())
    if max(x.shape[1], y.shape[1]) <= len(x):
        cross, within_x, within_y = x.T @ y, x.T @ x, y.T @ y
        return float(cross.square().sum() / (within_x.norm() * within_y.norm()))
    gram_x, gram_y = x @ x.T, y @ y.T
    return float((gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm()))


def unbiased_cka(x: Tensor, y: Tensor) -> float:
    """Return the CKA of X (m, p) and Y (m, q) from HSIC₁ over all m ≥ 4 examples at once."""
    sums = MinibatchCKA()
    sums.add(gram(x)[None], gram(y)[None])
    return float(sums.matrix()[0, 0])


def gram(activation: Tensor) -> Tensor:
    """Return the (n, n) inner products of n examples (n, ...), each less the mean example, as float64 on the CPU.

    Neither HSIC sees the mean; without it float32 is enough for the products.
    """
    return _products(activation.flatten(1))


def grams_of_tokens(tokens: Tensor) -> Tensor:
    """Return the Gram matrix of every token apart: (n, N, D) gives (N, n, n) float64 on the CPU."""
    return _products(tokens.transpose(0, 1))


def hsic1(gram_x: Tensor, gram_y: Tensor) -> float:
    """Return the unbiased HSIC₁ of two Gram matrices (n, n), n ≥ 4."""
    n = len(gram_x)
    return float((_unbiased_centred(gram_x) * _unbiased_centred(gram_y)).sum() / (n * (n - 3)))


class MinibatchCKA:
    """Unbiased CKA of all pairs of layers, from one minibatch after another.

    Batches count by their number of images; those with fewer than four are left out, because HSIC₁ needs four.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self._cross: Tensor | float = 0.0
        self._within_rows: Tensor | float = 0.0
        self._within_columns: Tensor | float = 0.0

    def add(self, rows: Tensor, columns: Tensor | None = None) -> None:
        """Take the Gram matrices of one batch, (layers, n, n); `columns` None compares the rows among themselves."""
        n = rows.shape[-1]
        if n < MIN_IMAGES:
            return
        of_rows = _unbiased_centred(rows).flatten(1)
        of_columns = of_rows if columns is None else _unbiased_centred(columns).flatten(1)
        weight = 1 / (n - 3)  # the factor of HSIC₁, times the n images of the batch
        self._cross = self._cross + weight * (of_rows @ of_columns.T)
        self._within_rows = self._within_rows + weight * of_rows.square().sum(dim=1)
        self._within_columns = self._within_columns + weight * of_columns.square().sum(dim=1)
        self.num_images += n

    def matrix(self) -> Floats:
        """Return CKA (rows, columns). Raises DataError before any batch of at least four images."""
        if not self.num_images:
            raise DataError("CKA needs batches of at least four images.", remedy="more images")
        scale = torch.outer(torch.as_tensor(self._within_rows), torch.as_tensor(self._within_columns)).sqrt()
        return (self._cross / scale).numpy()


def cka_within(model: ImageModel, batches: Iterable[Tensor], *, layers: Sequence[str] | None = None) -> Similarity:
    """Compare the layers of a model with each other.

    Args:
        batches: normalised images (B, C, H, W). Raghu et al. saw the same picture with batches of 128 to 1024; with 128 photos in DeiT-Ti,
            batches of 32 and of 128 differ by up to 0.06.
        layers: places; None is `representation_layers(model)`.
    """
    layers = tuple(representation_layers(model) if layers is None else layers)
    sums = MinibatchCKA()
    for image in batches:
        sums.add(_grams(model, image, layers))
    return Similarity(layers, layers, sums.matrix(), sums.num_images)


def cka_between(
    model: ImageModel,
    batches: Iterable[Tensor],
    other: ImageModel,
    other_batches: Iterable[Tensor],
    *,
    layers: Sequence[str] | None = None,
    other_layers: Sequence[str] | None = None,
) -> Similarity:
    """Compare the layers of `model` (rows) with those of `other` (columns) on the same images.

    Each model has its own batches, with its own size and preprocessing: two loaders over one list of images, in the same order.
    Raises DataError where the batches do not hold the same number of images.
    """
    layers = tuple(representation_layers(model) if layers is None else layers)
    other_layers = tuple(representation_layers(other) if other_layers is None else other_layers)
    sums = MinibatchCKA()
    for image, other_image in _paired(batches, other_batches):
        sums.add(_grams(model, image, layers), _grams(other, other_image, other_layers))
    return Similarity(layers, other_layers, sums.matrix(), sums.num_images)


@torch.no_grad()
def _grams(model: ImageModel, image: Tensor, layers: Sequence[str]) -> Tensor:
    with evaluating(model), taps.read(model, *layers, keep=gram) as found:
        model.features(image)
    return torch.stack([found[layer] for layer in layers])


def _paired(batches: Iterable[Tensor], other_batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for image, other_image in zip_longest(batches, other_batches):
        sizes = [0 if batch is None else len(batch) for batch in (image, other_image)]
        if sizes[0] != sizes[1]:
            raise DataError("The two models were not given the same images.", got=f"batches of {sizes[0]} and {sizes[1]} images")
        yield image, other_image


def _centred(examples: Tensor) -> Tensor:
    return examples - examples.mean(dim=-2, keepdim=True)


def _products(examples: Tensor) -> Tensor:
    """Return (..., n, n) for examples (..., n, p)."""
    examples = _centred(examples if examples.dtype == torch.float64 else examples.float())
    return (examples @ examples.transpose(-2, -1)).cpu().double()


def _unbiased_centred(gram: Tensor) -> Tensor:
    """Return K̃ (..., n, n) less row and column means, so that Σᵢⱼ K'ᵢⱼ L'ᵢⱼ is n(n−3) HSIC₁ (Székely and Rizzo's U-centring)."""
    n = gram.shape[-1]
    off_diagonal = 1.0 - torch.eye(n, dtype=gram.dtype)
    kept = gram * off_diagonal
    means = kept.sum(dim=-1, keepdim=True) / (n - 2)
    total = kept.sum(dim=(-2, -1), keepdim=True) / ((n - 1) * (n - 2))
    return (kept - means - means.transpose(-2, -1) + total) * off_diagonal
