"""Which parts of an image a model's answer rests on: one record, `Saliency`, from several methods and any family of models.

    rollout             attention carried through all layers; says nothing about the class (rollout.py)
    gradient_rollout    the same, weighted by the gradient of the class (rollout.py)
    grad_cam            Grad-CAM (Selvaraju et al., arXiv 1610.02391, eqs. 1–2): max(0, Σ_c α_c F_c) over the channels of the last feature
                        map F, α_c the mean of ∂y/∂F_c over its positions
    occlusion           how much log p(class) falls when a square around a cell is painted over (Zeiler & Fergus, arXiv 1311.2901, §4.2)
    random              no information: what any method must beat

The feature map of Grad-CAM is the final one where the class depends on all of it (mean pooling). A ViT with a class token does not read
the patches after its last attention layer, so their gradient there is zero; the map is then what that layer is given (normalised tokens).
A CNN whose pooling does not go through `Features.tokens` is read at its last module that returns a map of the final grid.

Axes: B batch, C channels, h w feature grid, R prefix tokens, N = R + h·w tokens, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kawara.analysis.evaluation_mode import evaluating
from kawara.analysis.observed_attention import attention_places, token_layout
from kawara.analysis.rollout import attention_rollout, chosen_targets, class_logits, gradient_rollout, require_head
from kawara.errors import InternalError, UnknownNameError
from kawara.layers import taps
from kawara.models import ImageModel
from kawara.models.interface import Features

Maps = NDArray[np.float32]


@dataclass(frozen=True)
class Saliency:
    """One map for each image; higher is more important. Scales differ from method to method: compare orders, not values."""

    maps: Maps
    """(B, h, w), at the resolution of the feature grid."""
    method: str
    targets: NDArray[np.int64]
    """(B,) the classes that were explained (for rollout and random: that would have been)."""


def saliency_methods(model: ImageModel) -> list[str]:
    """List the methods that work for a model: those made of attention need some."""
    return [name for name in _METHODS if "rollout" not in name or attention_places(model)]


def saliency(model: ImageModel, image: Tensor, method: str, targets: Tensor | None = None) -> Saliency:
    """Explain the logits of `targets` (B,), by default the predicted classes, for normalised images (B, C, H, W).

    Raises UnknownNameError for a method that does not exist for this model, ConfigError for a model without a head.
    """
    require_head(model)
    methods = saliency_methods(model)
    if method not in methods:
        raise UnknownNameError(f"saliency method for {type(model).__name__}", method, methods)
    with torch.no_grad(), evaluating(model):
        targets = chosen_targets(model(image), targets)
    return Saliency(_METHODS[method](model, image, targets), method, targets.cpu().numpy())


def grad_cam(model: ImageModel, image: Tensor, targets: Tensor | None = None) -> Maps:
    """Return the Grad-CAM map (B, h, w) ≥ 0 of the logits of `targets` (None: the predicted classes) for normalised (B, C, H, W).

    Raises ConfigError for a model without a head, InternalError where the class depends on no feature map that could be found.
    """
    attention = attention_places(model)
    places = [f"{attention[-1]}:input"] if attention else taps.places(model)
    with torch.enable_grad(), evaluating(model), taps.read(model, *places, detach=False) as found:
        features = model.features(image.detach().requires_grad_())
        logits = class_logits(model, features)
        score = logits.gather(1, chosen_targets(logits, targets)[:, None]).sum()
        candidates = [features.tokens]
        if attention:
            candidates.append(found[places[0]])
        else:
            # Places come in the order in which their modules finished: the last is the deepest.
            candidates += [tensor for tensor in reversed(found.values()) if _is_map(tensor, features.grid)][:1]
        gradients = torch.autograd.grad(score, candidates, allow_unused=True)
    for activation, gradient in zip(candidates, gradients):
        if gradient is not None and (patches := _as_patches(gradient, features)).any():
            channels = patches.mean(dim=1, keepdim=True)
            cam = (channels * _as_patches(activation.detach(), features)).sum(dim=-1).clamp_min(0)
            return cam.unflatten(1, features.grid).float().cpu().numpy()
    raise InternalError(f"The class depends on no feature map of {type(model).__name__} that Grad-CAM could read.")


@torch.no_grad()
def occlusion(model: ImageModel, image: Tensor, targets: Tensor | None = None, *, square_share: float = 0.2, batch_size: int = 64) -> Maps:
    """Return how much log p(target) falls when a square around each cell is painted over, (B, h, w), for normalised (B, C, H, W).

    The paint is 0, which is the mean colour of the preprocessing. The side of the square is `square_share` of the shorter side, rounded to
    an odd number of cells; an object larger than it can stay recognisable. Squares at the border are cut. Costs h·w + 1 answers an image.
    """
    require_head(model)
    layout = token_layout(model, image)
    (h, w), (height, width) = layout.grid, image.shape[-2:]
    reach = max(0, round((square_share * min(h, w) - 1) / 2))  # cells to either side
    with evaluating(model):
        logits = model(image)
        targets = chosen_targets(logits, targets)
        intact = _log_probability(logits, targets)
        falls = []
        for picture, target, before in zip(image, targets, intact):
            painted = torch.empty((h * w,), device=image.device, dtype=before.dtype)
            for start in range(0, h * w, batch_size):
                cells = range(start, min(start + batch_size, h * w))
                batch = picture.repeat(len(cells), 1, 1, 1)
                for number, cell in enumerate(cells):
                    top, bottom = _pixels(cell // w, reach, h, height)
                    left, right = _pixels(cell % w, reach, w, width)
                    batch[number, :, top:bottom, left:right] = 0
                painted[start : start + len(cells)] = _log_probability(model(batch), target.expand(len(cells)))
            falls.append((before - painted).reshape(h, w))
    return torch.stack(falls).float().cpu().numpy()


def random_maps(grid: tuple[int, int], num_images: int, *, seed: int = 0) -> Maps:
    """Return maps (B, h, w) of independent uniform numbers."""
    return np.random.default_rng(seed).random((num_images, *grid), dtype=np.float32)


def _random(model: ImageModel, image: Tensor, targets: Tensor) -> Maps:
    return random_maps(token_layout(model, image).grid, len(image))


_METHODS: dict[str, Callable[[ImageModel, Tensor, Tensor], Maps]] = {
    "rollout": lambda model, image, targets: attention_rollout(model, image),
    "gradient_rollout": gradient_rollout,
    "grad_cam": grad_cam,
    "occlusion": occlusion,
    "random": _random,
}


def _log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log p(target) (B,) in at least float32."""
    return logits.float().log_softmax(dim=1).gather(1, targets[:, None])[:, 0]


def _pixels(cell: int, reach: int, num_cells: int, side: int) -> tuple[int, int]:
    """Return first and last + 1 pixel of the cells within `reach` of a cell."""
    first, last = max(0, cell - reach), min(num_cells, cell + reach + 1)
    return first * side // num_cells, last * side // num_cells


def _is_map(value: object, grid: tuple[int, int]) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and tuple(value.shape[-2:]) == grid and value.requires_grad


def _as_patches(activation: Tensor, features: Features) -> Tensor:
    """Return tokens (B, N, D) or maps (B, D, h, w) as (B, h·w, D)."""
    return activation.flatten(2).transpose(1, 2) if activation.ndim == 4 else activation[:, features.num_prefix :]
