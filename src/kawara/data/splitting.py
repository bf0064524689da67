"""Hold out images by their content, so that an image stays on its side.

Each distinct image gets a number u in [0, 1) from its content and the seed alone: the first eight bytes of sha256(seed, digest).
u < f goes to test, f ≤ u < 2f to val, the rest to train (without a test part: u < f to val). Names, order and the other images play no
role; identical images land on the same side.

Only where a class would be left without an image in one of the parts is this corrected: of the other held-out part if it has several,
else of train, test takes the image with the lowest u and val the one with the highest. Such a class has about 1/f images or fewer. In
classes of three images and more, adding images can only undo a correction: no image that was trained on becomes a held-out one because
others were added or renamed. (The exception is a class all of whose images stand below 2f: it lends one to train until it has others.)

Classes of two images give one to train and one to val, classes of one keep it in train. In a data set of fewer than 30 images test is
part of val, and val is reported.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

TINY_NUM_IMAGES = 30


def content_position(digest: bytes, seed: int) -> float:
    """Return the number in [0, 1) at which the image with this digest stands."""
    number = hashlib.sha256(b"%d:" % seed + digest).digest()[:8]
    return (int.from_bytes(number, "big") >> 11) * 2.0**-53


def hold_out(
    digests: Sequence[bytes], labels: npt.NDArray[np.int64], *, seed: int, val_fraction: float, test_fraction: float
) -> npt.NDArray[np.str_]:
    """Return "train", "val" or "test" for each image.

    `test_fraction` 0 makes no test part. Fractions are of the distinct images, in expectation.
    """
    position = {digest: content_position(digest, seed) for digest in set(digests)}
    side = {digest: _side(u, val_fraction, test_fraction) for digest, u in position.items()}
    classes: dict[int, set[bytes]] = defaultdict(set)
    for digest, label in zip(digests, labels.tolist()):
        classes[label].add(digest)
    for members in classes.values():
        _fill_gaps(sorted(members, key=lambda digest: (position[digest], digest)), side, with_test=test_fraction > 0)
    if len(position) < TINY_NUM_IMAGES:  # merged only now: a set that outgrows this moves images from val to test, none from train
        side = {digest: "val" if part == "test" else part for digest, part in side.items()}
    return np.array([side[digest] for digest in digests], dtype="<U5")


def _side(u: float, val_fraction: float, test_fraction: float) -> str:
    if u < test_fraction:
        return "test"
    return "val" if u < test_fraction + val_fraction else "train"


def _fill_gaps(members: list[bytes], side: dict[bytes, str], *, with_test: bool) -> None:
    """Give each part an image of this class; `members` ascend in u."""

    def those(part: str) -> list[bytes]:
        return [digest for digest in members if side[digest] == part]

    if len(members) < 2:
        for digest in members:
            side[digest] = "train"
        return
    if not those("train"):
        side[members[-1]] = "train"
    # The other held-out part lends first: were it train, an added image could turn the choice to one that was trained on.
    if with_test and len(members) >= 3 and not those("test"):
        lender = "val" if len(those("val")) > 1 else "train"
        side[those(lender)[0]] = "test"
    if not those("val"):
        lender = "test" if len(those("test")) > 1 or len(those("train")) == 1 else "train"
        side[those(lender)[-1]] = "val"
