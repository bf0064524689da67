"""What the skip connections carry: the stream against the branch that is added to it, and what is lost without one of them.

Raghu et al., arXiv 2108.08810, §5. A skip connection adds a branch to the stream, z + f(z):

    ratio       ‖z‖ / ‖f(z)‖ at every token: above 1 the token is mostly carried on, below 1 mostly rewritten
    removal     the model runs with one z left out. Counted are the right answers, the answers that stay what they were, and the CKA
                of the pooled features with those of the whole model

Differs from the paper: there a model is trained without a skip (4 % are lost in a middle block); here it is taken away from a trained one,
which hardly any block survives. The CKA map of such a model is `with without_skip(model, place): cka_within(model, batches)`.

Axes: S skip connections, R prefix tokens, N tokens, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kawara.analysis.evaluation_mode import evaluating
from kawara.analysis.places import as_tokens, skip_places, token_layout
from kawara.analysis.similarity import MinibatchCKA, gram
from kawara.errors import DataError
from kawara.layers import taps
from kawara.models import ImageModel
from kawara.models.interface import mean_of_heads

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class SkipRatios:
    """‖z‖ / ‖f(z)‖ at every token of every skip connection, averaged over the images; infinite where a branch is silent."""

    places: tuple[str, ...]
    tokens: tuple[Floats, ...]
    """Of each place (N,), prefix tokens first; N differs between the stages of a CNN."""
    num_prefix: int
    num_images: int

    @property
    def prefix(self) -> Floats:
        """(S, R): of class token, distillation token and registers."""
        return np.stack([ratio[: self.num_prefix] for ratio in self.tokens])

    @property
    def patches(self) -> Floats:
        """(S,): the mean over the tokens that are not prefix."""
        return np.array([ratio[self.num_prefix :].mean() for ratio in self.tokens])


@dataclass(frozen=True)
class SkipRemoval:
    """What is left of a model without one of its skip connections. Accuracies and agreement are shares in [0, 1]."""

    places: tuple[str, ...]
    agreement: Floats
    """(S,): images whose predicted class stays what it is with all skips."""
    cka: Floats
    """(S,): pooled features without this skip against those with all; NaN where they do not depend on the image."""
    accuracy: Floats | None
    """(S,), or None without labels."""
    accuracy_intact: float | None
    num_images: int


@torch.no_grad()
def skip_ratios(model: ImageModel, batches: Iterable[Tensor]) -> SkipRatios:
    """Measure ‖z‖ / ‖f(z)‖ on batches of normalised images (B, C, H, W) of one size. Raises ConfigError for a model without skips."""
    places = skip_places(model)
    names = [f"{place}:{argument}" for place in places for argument in ("input", "input1")]
    sums: dict[str, Tensor] = {}
    num_images = num_prefix = 0
    for image in batches:
        num_prefix = token_layout(model, image).num_prefix
        with evaluating(model), taps.read(model, *names, keep=_norms) as found:
            model.features(image)
        for place in places:
            ratio = (found[f"{place}:input"] / found[f"{place}:input1"]).sum(dim=0)
            sums[place] = sums[place] + ratio if place in sums else ratio
        num_images += len(image)
    if not num_images:
        raise DataError("There are no images to measure skip connections on.")
    return SkipRatios(tuple(places), tuple((sums[place] / num_images).numpy() for place in places), num_prefix, num_images)


@torch.no_grad()
def skip_removal(
    model: ImageModel, batches: Iterable[Tensor], labels: Tensor | None = None, *, places: Sequence[str] | None = None
) -> SkipRemoval:
    """Take away one skip connection after the other and see what the model still answers.

    One pass over the data, which runs the model once for each place and once whole.

    Args:
        batches: normalised images (B, C, H, W).
        labels: (n,) class numbers of all images in order.
        places: skip connections; None is all of them.

    Raises:
        ConfigError: a model without skips.
        DataError: labels that are not as many as the images.
    """
    places = tuple(skip_places(model) if places is None else places)
    sums = MinibatchCKA()
    answers: list[Tensor] = []  # of each batch (1 + S, B), the whole model first
    for image in batches:
        predicted, pooled = [], []
        for removed in ((), *((place,) for place in places)):
            with evaluating(model), without_skip(model, *removed):
                features = model.features(image)
                predicted.append(mean_of_heads(model.apply_heads(features)).argmax(dim=1).cpu())
                pooled.append(gram(features.pooled))
        every_gram = torch.stack(pooled)
        sums.add(every_gram[:1], every_gram[1:])
        answers.append(torch.stack(predicted))
    cka = sums.matrix()[0]
    every = torch.cat(answers, dim=1)
    num_images = every.shape[1]
    if labels is not None and len(labels) != num_images:
        raise DataError("Every image needs one label.", got=f"{len(labels)} labels", allowed=f"{num_images} images")
    agreement = (every[1:] == every[0]).double().mean(dim=1).numpy()
    if labels is None:
        return SkipRemoval(places, agreement, cka, None, None, num_images)
    right = (every == labels.cpu()).double().mean(dim=1).numpy()
    return SkipRemoval(places, agreement, cka, right[1:], float(right[0]), num_images)


@contextmanager
def without_skip(model: nn.Module, *places: str) -> Iterator[None]:
    """Let the named skip connections pass on their branch alone, f(z) for z + f(z)."""
    with taps.replace(model, dict.fromkeys(places, lambda output, inputs: inputs[1])):
        yield


def _norms(activation: Tensor) -> Tensor:
    """Return the length of every token: (B, N) float64."""
    return as_tokens(activation).double().norm(dim=-1).cpu()
