"""Run an operation on the images that drew it: together where they are small, one by one where each fills the processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kawara.data.randomness import Floats, Indices

Operation = Callable[[Tensor, Floats], Tensor]
"""Images (n, C, h, w) and arguments (n, k) to images. Arguments stay in numpy until their last form: small arrays are cheap there."""

_LARGE_IMAGE_BYTES = 1 << 15


def apply_in_groups(images: Tensor, members: Indices, operations: Sequence[tuple[slice, Operation]], arguments: Floats) -> None:
    """Replace images[members[span]] by operation(images[members[span]], arguments[span]) for each (span, operation).

    The spans are disjoint and together cover `members`.
    """
    if images.device.type == "cpu" and images[0].numel() >= _LARGE_IMAGE_BYTES:
        for span, operation in operations:
            for row, place in zip(range(span.start, span.stop), members[span].tolist()):
                image = images[place : place + 1]
                image.copy_(operation(image, arguments[row : row + 1]))
        return
    gathered = _gather(images, members)
    for span, operation in operations:
        piece = gathered[span]
        piece.copy_(operation(piece, arguments[span]))
    _scatter(images, members, gathered)


def apply_to(images: Tensor, members: Indices, operation: Operation, arguments: Floats) -> None:
    """Replace images[members] by operation(images[members], arguments)."""
    if len(members):
        apply_in_groups(images, members, [(slice(0, len(members)), operation)], arguments)


def _gather(images: Tensor, members: Indices) -> Tensor:
    if images.device.type == "cpu":
        return torch.from_numpy(images.numpy()[members])
    return images.index_select(0, torch.from_numpy(members).to(images.device, non_blocking=True))


def _scatter(images: Tensor, members: Indices, values: Tensor) -> None:
    if images.device.type == "cpu":  # numpy copies whole images where torch goes value by value
        images.numpy()[members] = values.numpy()
    else:
        images.index_copy_(0, torch.from_numpy(members).to(images.device, non_blocking=True), values)


def column(values: npt.NDArray[np.generic], images: Tensor, dtype: type[np.generic]) -> Tensor:
    """Return `values` (n,) as a tensor that broadcasts with `images` (n, C, h, w), on their device."""
    shape = () if len(values) == 1 else (len(values), 1, 1, 1)  # torch is quickest with scalars
    return torch.from_numpy(values.astype(dtype).reshape(shape)).to(images.device, non_blocking=True)
