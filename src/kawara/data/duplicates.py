"""Find copies of images that are no longer the same bytes: re-encoded, resized, mirrored, a little brighter.

Each image leaves a signature: its luma in 16×16 cells, and its colour (Cb, Cr) in 4×4. From it comes a perceptual hash of 64 bits, the
signs of the 8×8 lowest frequencies of the cells' discrete cosine transform (pHash; Zauner, "Implementation and Benchmarking of
Perceptual Image Hash Functions", 2010, has the median in the place of zero). With zero a mirror image has the same hash but for the odd
horizontal frequencies, whose signs turn:

    X(u, v) = Σ_{y,x} L(y, x) cos(π(2y+1)u / 32) cos(π(2x+1)v / 32)        mirrored: X′(u, v) = (−1)^v X(u, v)

Two images are candidates when their hashes differ in at most 7 bits. Such hashes agree in one of their four 16-bit parts but for at most
one bit (7 < 4·2), so they are found in tables of the parts instead of comparing all with all (Norouzi et al., 1307.2982). A candidate is
a pair when the cells correlate by at least 0.96 and the colours agree.

Axes: n images, S = 16 cells a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from kawara.data.decode import ImageU8, to_grey

CELLS, COLOR_CELLS, FREQUENCIES = 16, 4, 8
SIGNATURE_BYTES = CELLS**2 + 2 * COLOR_CELLS**2
MAX_BITS_APART = 7
MIN_CORRELATION = 0.96
MIN_CONTRAST = 4.0
"""Standard deviation of the cells, in levels, below which an image has too little structure to be recognised."""
BLANK_RANGE = 2

Hashes = npt.NDArray[np.uint64]
_PARTS, _PART_BITS = 4, 16
_BLOCK = 1 << 22
_SMALL_BYTES = 1 << 14
# Beyond these the images have a common scene (a fixed camera, scans of one form) and everything is like everything.
_MAX_COMPARED, _MAX_COMPARED_EACH = 20_000_000, 2_000
_MAX_CANDIDATES, _MAX_CANDIDATES_EACH = 20_000, 20


@dataclass(frozen=True)
class NearPairs:
    """Pairs of near-duplicates: `first` < `second` (n,), their correlation, and whether one is the mirror image of the other.

    `is_complete` is False where so many images look alike that no list was made.
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    correlation: npt.NDArray[np.float32]
    is_mirrored: npt.NDArray[np.bool_]
    is_complete: bool = True


def sign(images_u8: Sequence[ImageU8]) -> ImageU8:
    """Return (n, 288) uint8 of images (H, W, 1|3), whatever their sizes: luma of 16×16 cells, then Cb and Cr of 4×4 cells."""
    if not images_u8:
        return np.zeros((0, SIGNATURE_BYTES), np.uint8)
    if len({image.shape for image in images_u8}) == 1 and images_u8[0].size <= _SMALL_BYTES:
        return sign_array(np.stack(images_u8))
    return _signatures(np.stack([_cells_of(image) for image in images_u8]))


def _cells_of(image_u8: ImageU8) -> ImageU8:
    """Return the mean colours (16, 16, 1|3) of the cells of an image (H, W, 1|3)."""
    image = Image.fromarray(image_u8[..., 0] if image_u8.shape[2] == 1 else image_u8)
    factor = min(image.size) // (4 * CELLS)
    if factor > 1:  # twice as fast, and within a level of the same
        image = image.reduce(factor)
    return np.asarray(image.resize((CELLS, CELLS), Image.Resampling.BOX)).reshape(CELLS, CELLS, -1)


def _signatures(cells: ImageU8) -> ImageU8:
    """Return (n, 288) uint8 for cells (n, 16, 16, 1|3): their luma, then Cb and Cr of 4×4 cells."""
    num_images, channels = len(cells), cells.shape[3]
    luma = (cells if channels == 1 else to_grey(cells)).reshape(num_images, -1)
    if channels == 1:
        return np.concatenate([luma, np.full((num_images, 2 * COLOR_CELLS**2), 128, np.uint8)], axis=1)
    side = CELLS // COLOR_CELLS
    mean = cells.reshape(num_images, COLOR_CELLS, side, COLOR_CELLS, side, 3).mean(axis=(2, 4), dtype=np.float32)
    red, green, blue = mean[..., 0], mean[..., 1], mean[..., 2]
    cb = 128 - 0.168736 * red - 0.331264 * green + 0.5 * blue  # JFIF
    cr = 128 + 0.5 * red - 0.418688 * green - 0.081312 * blue
    color = np.stack([cb, cr], axis=1).reshape(num_images, -1)
    return np.concatenate([luma, np.rint(color).clip(0, 255).astype(np.uint8)], axis=1)


def sign_array(images_u8: ImageU8) -> ImageU8:
    """Return (n, 288) uint8 of images (n, H, W, 1|3)."""
    num_images, height, width, channels = images_u8.shape
    rows, columns = height // CELLS, width // CELLS
    if height % CELLS or width % CELLS or rows * columns > CELLS:
        return _signatures(np.stack([_cells_of(image) for image in images_u8]))
    sums = np.full((num_images, CELLS, CELLS, channels), rows * columns // 2, np.uint16)
    for row in range(rows):  # a few additions of everything are quicker than many short sums
        for column in range(columns):
            sums += images_u8[:, row::rows, column::columns]
    return _signatures((sums // (rows * columns)).astype(np.uint8))


def is_blank(image_u8: ImageU8, signature: ImageU8) -> bool:
    """Tell whether all pixels of an image are alike: a picture of nothing."""
    luma = signature[: CELLS**2].tobytes()  # nearly always this is enough, and bytes are quicker to look through than a small array
    if max(luma) - min(luma) > BLANK_RANGE:
        return False
    return all(int(np.ptp(image_u8[..., channel])) <= BLANK_RANGE for channel in range(image_u8.shape[2]))


def find_near_pairs(signatures_u8: ImageU8) -> NearPairs:
    """Return all pairs of near-duplicates among `signatures_u8` (n, 288), those of images with too little structure left out."""
    cells = signatures_u8[:, : CELLS**2]
    usable = np.flatnonzero(cells.std(axis=1) >= MIN_CONTRAST)
    hashes = perceptual_hashes(signatures_u8[usable])
    found = [_candidates(hashes, hashes), _candidates(hashes, hashes ^ mirror_mask())]
    if any(candidates is None for candidates in found):
        empty = np.zeros(0, np.int64)
        return NearPairs(empty, empty, np.zeros(0, np.float32), np.zeros(0, bool), is_complete=False)
    best: dict[tuple[int, int], tuple[float, bool]] = {}
    for is_mirrored, candidates in zip((False, True), found):
        assert candidates is not None
        first, second = usable[candidates[0]], usable[candidates[1]]
        correlation = _correlations(signatures_u8, first, second, is_mirrored)
        kept = correlation >= MIN_CORRELATION
        for i, j, value in zip(first[kept].tolist(), second[kept].tolist(), correlation[kept].tolist()):
            best[i, j] = max(best.get((i, j), (0.0, False)), (value, is_mirrored))
    pairs = np.array(sorted(best), np.int64).reshape(-1, 2)
    values = [best[i, j] for i, j in pairs.tolist()]
    return NearPairs(
        pairs[:, 0], pairs[:, 1], np.array([value for value, _ in values], np.float32), np.array([flag for _, flag in values], bool)
    )


def perceptual_hashes(signatures_u8: ImageU8) -> Hashes:
    """Return (n,) uint64: the signs of the lowest frequencies but the mean."""
    cells = signatures_u8[:, : CELLS**2].reshape(-1, CELLS, CELLS)
    basis = _cosines()
    hashes = np.zeros(len(cells), np.uint64)
    for start in range(0, len(cells), 1 << 14):
        block = cells[start : start + (1 << 14)].astype(np.float32)
        frequencies = (basis @ block @ basis.T).reshape(len(block), -1)
        hashes[start : start + len(block)] = np.packbits(frequencies > 0, axis=1).view(">u8")[:, 0]
    return hashes & ~np.uint64(1 << 63)  # the mean is always positive


def mirror_mask() -> np.uint64:
    """Return the bits of a hash that differ in a mirror image: the odd horizontal frequencies."""
    is_odd = np.tile(np.arange(FREQUENCIES) % 2 == 1, (FREQUENCIES, 1)).reshape(1, -1)
    return np.packbits(is_odd, axis=1).view(">u8")[0, 0].astype(np.uint64)


def _cosines() -> npt.NDArray[np.float32]:
    """Return the (8, 16) lowest rows of the discrete cosine transform."""
    positions, frequencies = np.arange(CELLS), np.arange(FREQUENCIES)
    return np.cos(np.pi * (2 * positions + 1) * frequencies[:, None] / (2 * CELLS)).astype(np.float32)


def _candidates(hashes: Hashes, wanted: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """Return the pairs i < j with hashes[i] and wanted[j] at most 7 bits apart; None where there are too many to be of use."""
    num_images = len(hashes)
    num_compared, num_kept, kept = 0, 0, []
    for part in range(_PARTS):
        shift = np.uint64(part * _PART_BITS)
        keys, wanted_keys = ((values >> shift).astype(np.uint16) for values in (hashes, wanted))
        order = np.argsort(wanted_keys, kind="stable")
        starts = np.zeros((1 << _PART_BITS) + 1, np.int64)
        np.cumsum(np.bincount(wanted_keys, minlength=1 << _PART_BITS), out=starts[1:])
        for flip in (0, *(1 << bit for bit in range(_PART_BITS))):
            probes = keys ^ np.uint16(flip)
            counts = starts[probes.astype(np.int64) + 1] - starts[probes]
            num_compared += int(counts.sum())
            if num_compared > _MAX_COMPARED + _MAX_COMPARED_EACH * num_images:
                return None
            found = _joined(hashes, wanted, order, starts[probes], counts)
            num_kept += len(found)  # a pair may be found in several parts
            if num_kept > 4 * (_MAX_CANDIDATES + _MAX_CANDIDATES_EACH * num_images):
                return None
            kept.append(found)
    ids = np.unique(np.concatenate(kept))
    return ids // num_images, ids % num_images


def _joined(
    hashes: Hashes, wanted: Hashes, order: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return i·n + j for each i with those j of its table row that are larger and at most 7 bits apart, in blocks of bounded size."""
    num_images, begin = len(hashes), 0
    ends = np.cumsum(counts)
    kept = [np.zeros(0, np.int64)]
    while begin < num_images:
        before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + _BLOCK, side="right")))
        block = counts[begin:end]
        first = np.repeat(np.arange(begin, end), block)
        within = np.arange(len(first)) - np.repeat(ends[begin:end] - block - before, block)
        second = order[np.repeat(starts[begin:end], block) + within]
        ahead = first < second
        first, second = first[ahead], second[ahead]
        near = np.bitwise_count(hashes[first] ^ wanted[second]) <= MAX_BITS_APART
        kept.append(first[near] * num_images + second[near])
        begin = end
    return np.concatenate(kept)


def _correlations(
    signatures_u8: ImageU8, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], is_mirrored: bool
) -> npt.NDArray[np.float32]:
    """Return the correlation of the cells of each pair; 0 where the colours differ."""
    values = np.zeros(len(first), np.float32)
    for start in range(0, len(first), 1 << 15):
        block = slice(start, start + (1 << 15))
        one, other = (signatures_u8[side[block]] for side in (first, second))
        values[block] = np.where(_same_colors(one, other, is_mirrored), _correlation(one, other, is_mirrored), 0)
    return values


def _correlation(one: ImageU8, other: ImageU8, is_mirrored: bool) -> npt.NDArray[np.float32]:
    a, b = (rows[:, : CELLS**2].reshape(-1, CELLS, CELLS).astype(np.float32) for rows in (one, other))
    b = b[:, :, ::-1] if is_mirrored else b
    a, b = (values - values.mean(axis=(1, 2), keepdims=True) for values in (a, b))
    return (a * b).sum(axis=(1, 2)) / np.sqrt((a**2).sum(axis=(1, 2)) * (b**2).sum(axis=(1, 2)))


def _same_colors(one: ImageU8, other: ImageU8, is_mirrored: bool) -> npt.NDArray[np.bool_]:
    """Tell whether the colours differ by less than compression and a change of brightness explain; a grey copy of a picture passes."""
    a, b = (rows[:, CELLS**2 :].reshape(-1, 2, COLOR_CELLS, COLOR_CELLS).astype(np.float32) - 128 for rows in (one, other))
    b = b[..., ::-1] if is_mirrored else b
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    strengths = np.stack([np.sqrt((values**2).mean(axis=1)) for values in (a, b)])
    difference = np.sqrt(((a - b) ** 2).mean(axis=1))
    is_grey = strengths.min(axis=0) < 1.0
    return is_grey | (difference <= 4.0 + 0.35 * strengths.max(axis=0))
