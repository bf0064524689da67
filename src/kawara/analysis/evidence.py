"""One number for each question about a model: what the sentences of an inspection rest on.

Raghu et al., arXiv 2108.08810 (local and global heads, similarity of halves, skip connections, localisation), Park and Kim,
arXiv 2202.06709 (smoothing), Darcet et al., arXiv 2309.16588 (tokens of large norm), Naseer et al., arXiv 2105.10497 (lost tiles).

Each function takes the record of one analysis and returns a ratio or a share, so that sizes and models can be compared; NaN where the
record does not say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kawara.analysis.attention_statistics import AttentionStatistics
from kawara.analysis.outliers import BIMODAL_FROM, TokenNorms
from kawara.analysis.receptive_field import ReceptiveFields
from kawara.analysis.robustness import Robustness
from kawara.analysis.similarity import Similarity
from kawara.analysis.skip import SkipRatios, SkipRemoval
from kawara.analysis.spectrum import Spectra, SubBlock


def nearest_head_below(attention: AttentionStatistics) -> float:
    """Return the distance of the most local head in the lowest quarter of the blocks, as a share of uniform attention's."""
    lowest = attention.distance_px[: _quarter(len(attention.places))]
    return float(lowest.min() / attention.uniform_distance_px)


def nearest_head_above(attention: AttentionStatistics) -> float:
    """Return the distance of the most local head in the highest quarter of the blocks, as a share of uniform attention's."""
    highest = attention.distance_px[-_quarter(len(attention.places)) :]
    return float(highest.min() / attention.uniform_distance_px)


def class_token_carried(skips: SkipRatios, *, late: bool) -> float:
    """Return how much more the class token is carried on by the skips than the patches are, in the first or the second half of the model.

    The geometric mean over the skip connections of ratio(class token) / ratio(patches): above 1 it is carried on more.
    """
    if not skips.num_prefix:
        return float("nan")
    half = len(skips.places) // 2
    chosen = slice(half, None) if late else slice(0, half)
    class_token, patches = skips.prefix[chosen, 0], skips.patches[chosen]
    known = np.isfinite(class_token) & np.isfinite(patches) & (class_token > 0) & (patches > 0)
    if not known.any():
        return float("nan")
    return float(np.exp(np.log(class_token[known] / patches[known]).mean()))


def sharpening(spectra: Spectra, kinds: Sequence[SubBlock]) -> float:
    """Return by how much sub-blocks of these kinds change Δ log amplitude at the highest frequency, on average: below 0 they smooth.

    Changes from one grid to another (the stages of a CNN) are left out.
    """
    changes = [
        after[-1] - before[-1]
        for before, after, kind in zip(spectra.log_amplitude, spectra.log_amplitude[1:], spectra.kinds[1:])
        if kind in kinds and len(before) == len(after)
    ]
    return float(np.mean(changes)) if changes else float("nan")


def view_of_first(fields: ReceptiveFields) -> float:
    """Return how far the first of the places looks, as a share of looking at all pixels alike."""
    return float(fields.mean_distance_px[0] / uniform_view_px(fields))


def view_of_last(fields: ReceptiveFields) -> float:
    """Return how far the last of the places looks, as a share of looking at all pixels alike."""
    return float(fields.mean_distance_px[-1] / uniform_view_px(fields))


def uniform_view_px(fields: ReceptiveFields) -> float:
    """Return the mean distance of all pixels from the centre that the fields are taken at."""
    height, width = fields.gradient.shape[1:]
    y, x = fields.centre_px[-1]
    return float(np.hypot(np.arange(height)[:, None] + 0.5 - y, np.arange(width)[None, :] + 0.5 - x).mean())


def kept_without_worst_skip(removal: SkipRemoval) -> float:
    """Return the share of answers that stay what they are without the skip connection that is missed most."""
    return float(removal.agreement.min())


def largest_share_of_outliers(norms: TokenNorms) -> float:
    """Return the share of high-norm tokens in the block of the second half that has most of them.

    Only blocks count whose norms fall into two groups (bimodality above 5/9): a tail is no group; 0 where there is no such block.
    """
    half = len(norms.places) // 2
    in_groups = np.nan_to_num(norms.bimodality[half:]) > BIMODAL_FROM
    return float((norms.shares[half:] * in_groups).max())


def best_match_of_top(between: Similarity) -> float:
    """Return the CKA of a layer of the upper third with the layer of the other model that is most like it, on average."""
    upper = between.cka[-max(1, len(between.rows) // 3) :]
    return float(np.nanmean(np.nanmax(upper, axis=1)))


def kept_with_half_lost(robustness: Robustness) -> float:
    """Return the accuracy with half of the tiles black as a share of that with none; between two measured strengths on a line."""
    if robustness.accuracy[0] == 0:
        return float("nan")
    return float(np.interp(0.5, robustness.strengths, robustness.accuracy) / robustness.accuracy[0])


def _quarter(count: int) -> int:
    return max(1, count // 4)
