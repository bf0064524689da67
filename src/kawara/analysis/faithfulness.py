"""Is a saliency map true to the model? A number beside each map, so that a pretty but wrong one is marked.

Deletion and insertion (RISE, Petsiuk et al., arXiv 1806.07421, §3.3): cells of the image are painted over in the order of the map, most
important first, and p(class) is read at each step (deletion); or they appear in that order on a painted ground (insertion). A map that is
true to the model has a small area under the first curve and a large one under the second. Both mean little alone, because the painted
image is unlike any photo; so the same is done in random orders, and a map counts as faithful where it beats every one of them both ways.

    deletion area   ∫ p(class | the first s of the cells painted over) ds,  s from 0 to 1, trapezoids
    insertion area  ∫ p(class | all but the first s painted over) ds

Random orders need one curve each: read backwards, the deletion curve of an order is the insertion curve of the reverse order.

Pointing game (Zhang et al., arXiv 1608.00507): does the highest cell lie on the object? Compared with the share of all cells that do.

Differs from RISE: cells instead of pixels, and the same paint for both curves (RISE paints grey for deletion, blur for insertion).

Axes: B batch, C channels, H W pixels, h w cells of a map, S steps, Z random orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kawara.analysis.corruptions import cells_of_pixels, gaussian_blur
from kawara.analysis.evaluation_mode import evaluating
from kawara.analysis.rollout import chosen_targets, require_head
from kawara.errors import ConfigError
from kawara.models import ImageModel

Maps = NDArray[np.floating]
Floats = NDArray[np.float64]
Paint = Literal["mean", "blur"]

BLUR_SHARE = 0.05
"""Deviation of the Gaussian of the paint "blur" as a share of the shorter side: 11 px of 224."""


@dataclass(frozen=True)
class Faithfulness:
    """Deletion and insertion curves of one method on B images, beside those of random orders."""

    shares: Floats
    """(S + 1,) share of the cells, from 0 to 1."""
    deletion: Floats
    """(B, S + 1) probability of the class when that share, most important first, is painted over."""
    insertion: Floats
    """(B, S + 1) probability of the class when only that share, most important first, is there."""
    random_deletion: Floats
    """(B, Z, S + 1)"""

    @property
    def deletion_area(self) -> Floats:
        """(B,) in [0, 1]; less is better."""
        return _area(self.deletion, self.shares)

    @property
    def insertion_area(self) -> Floats:
        """(B,) in [0, 1]; more is better."""
        return _area(self.insertion, self.shares)

    @property
    def random_area(self) -> Floats:
        """(B, Z): the area of random orders, under either curve."""
        return _area(self.random_deletion, self.shares)

    @property
    def score(self) -> Floats:
        """(B,) insertion less deletion area, in [−1, 1]: about 0 for an order that knows nothing."""
        return self.insertion_area - self.deletion_area

    @property
    def beats_deletion(self) -> NDArray[np.bool_]:
        """(B,) whether the deletion area is below that of every random order."""
        return self.deletion_area < self.random_area.min(axis=1)

    @property
    def beats_insertion(self) -> NDArray[np.bool_]:
        """(B,) whether the insertion area is above that of every random order."""
        return self.insertion_area > self.random_area.max(axis=1)

    @property
    def faithful(self) -> NDArray[np.bool_]:
        """(B,) both."""
        return self.beats_deletion & self.beats_insertion


@torch.no_grad()
def faithfulness(
    model: ImageModel,
    image: Tensor,
    maps: Mapping[str, Maps],
    targets: Tensor | None = None,
    *,
    steps: int = 14,
    num_random: int = 5,
    paint: Paint = "mean",
    seed: int = 0,
    batch_size: int = 64,
) -> dict[str, Faithfulness]:
    """Measure the maps (B, h, w) of each method on normalised images (B, C, H, W); all methods meet the same random orders.

    Args:
        targets: (B,) the classes that the maps explain; None: the predicted ones.
        steps: how many portions of cells; never more than there are cells.
        paint: "mean": 0, the mean colour of the preprocessing. "blur": the image itself, blurred.

    Raises ConfigError where maps and images do not fit together, or for a model without a head.
    """
    require_head(model)
    if not maps:
        raise ConfigError("There are no maps to measure.")
    grids = {method: np.asarray(values).shape for method, values in maps.items()}
    if len(set(grids.values())) > 1 or any(len(shape) != 3 or shape[0] != len(image) for shape in grids.values()):
        raise ConfigError("The maps do not fit the images, or one another.", got=grids, allowed=f"({len(image)}, h, w)")
    grid = next(iter(grids.values()))[1:]
    num_cells = grid[0] * grid[1]
    counts = np.unique(np.linspace(0, num_cells, min(steps, num_cells) + 1).round().astype(np.int64))
    ground = torch.zeros_like(image) if paint == "mean" else gaussian_blur(image, BLUR_SHARE * min(image.shape[-2:]))
    random = np.random.default_rng(seed)
    random_ranks = np.stack([[random.permutation(num_cells) for _ in range(num_random)] for _ in range(len(image))])
    ties = random.permutation(num_cells)
    ranks = {method: np.stack([_ranks(one, ties) for one in np.asarray(values)]) for method, values in maps.items()}
    with evaluating(model):
        targets = chosen_targets(model(image), targets)

        def curves(ranks: NDArray[np.int64], *, insert: bool) -> Floats:
            """Return (B, S + 1) for ranks (B, h·w): 0 is the most important cell."""
            found = [
                _curve(model, picture, behind, target, rank.reshape(grid), counts, insert, batch_size)
                for picture, behind, target, rank in zip(image, ground, targets, ranks)
            ]
            return np.stack(found)

        randomly = [curves(random_ranks[:, number], insert=False) for number in range(num_random)]
        return {
            method: Faithfulness(
                shares=counts / num_cells,
                deletion=curves(ranks[method], insert=False),
                insertion=curves(ranks[method], insert=True),
                random_deletion=np.stack(randomly, axis=1),
            )
            for method in maps
        }


@dataclass(frozen=True)
class PointingGame:
    """Whether the highest cell of each map lies on the object."""

    hits: Floats
    """(B,) 1 or 0; between them where several cells are highest and not all lie on it."""
    chance: Floats
    """(B,) share of all cells that lie on the object."""


def pointing_game(maps: Maps, masks: NDArray[np.bool_], *, tolerance_px: int = 0) -> PointingGame:
    """Play with maps (B, h, w) and objects (B, H, W): a cell lies on the object if its centre pixel does, or one within the tolerance."""
    masks = np.asarray(masks, dtype=bool)
    if len(maps) != len(masks) or masks.ndim != 3:
        raise ConfigError(
            "Maps and masks do not fit together.", got=f"{np.shape(maps)} and {masks.shape}", allowed="(B, h, w) and (B, H, W)"
        )
    if tolerance_px:
        wide = F.max_pool2d(torch.from_numpy(masks)[:, None].float(), 2 * tolerance_px + 1, stride=1, padding=tolerance_px)
        masks = wide[:, 0].numpy() > 0
    (h, w), (height, width) = maps.shape[1:], masks.shape[1:]
    rows, columns = ((np.arange(n) + 0.5) * side / n for n, side in ((h, height), (w, width)))
    on_object = masks[:, rows.astype(int)][:, :, columns.astype(int)]
    highest = maps == maps.max(axis=(1, 2), keepdims=True)
    return PointingGame((on_object & highest).sum(axis=(1, 2)) / highest.sum(axis=(1, 2)), on_object.mean(axis=(1, 2)))


def box_mask(box: tuple[float, float, float, float], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of a box (left, top, right, bottom) in px: the pixels whose centre is inside."""
    left, top, right, bottom = box
    y, x = np.arange(size[0])[:, None] + 0.5, np.arange(size[1])[None, :] + 0.5
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def _ranks(values: Maps, ties: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rank (h·w,) of each cell, 0 the highest. Equal cells go in the order `ties`: row by row would favour the top."""
    flat = values.reshape(-1).astype(np.float64)
    ranks = np.empty(len(flat), dtype=np.int64)
    ranks[np.lexsort((ties, -flat))] = np.arange(len(flat))
    return ranks


def _curve(
    model: ImageModel,
    picture: Tensor,
    ground: Tensor,
    target: Tensor,
    rank: NDArray[np.int64],
    counts: NDArray[np.int64],
    insert: bool,
    batch: int,
) -> Floats:
    """Return p(target) (S + 1,) when the first `counts` cells of one image (C, H, W) are painted over, or are the only ones there."""
    rows, columns = (torch.from_numpy(cells_of_pixels(side, n)) for side, n in zip(picture.shape[-2:], rank.shape))
    rank_of_pixel = torch.from_numpy(rank)[rows][:, columns].to(picture.device)
    thresholds = torch.from_numpy(counts).to(picture.device)
    values = []
    for portion in thresholds.split(batch):
        first = rank_of_pixel < portion[:, None, None]  # (portion, H, W): the most important cells
        shown = first if insert else ~first
        logits = model(torch.where(shown[:, None], picture, ground))
        values.append(logits.float().softmax(dim=1)[:, target])
    return torch.cat(values).cpu().double().numpy()


def _area(curves: Floats, shares: Floats) -> Floats:
    return ((curves[..., 1:] + curves[..., :-1]) / 2 * np.diff(shares)).sum(axis=-1)
