"""Run an operation on the images that drew it: together where they are small, one by one where each fills the processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from kawara.data.randomness import Floats, Indices

Operation = Callable[[Tensor, Tensor], Tensor]
"""Images (n, C, h, w) and arguments (n, …) to images."""

_LARGE_IMAGE_BYTES = 1 << 15


def apply_in_groups(images: Tensor, members: Indices, operations: Sequence[tuple[slice, Operation]], arguments: Floats) -> None:
    """Replace images[members[span]] by operation(images[members[span]], arguments[span]) for each (span, operation).

    The spans are disjoint. Members and arguments travel to the images' device once.
    """
    if images.device.type == "cpu" and images[0].numel() >= _LARGE_IMAGE_BYTES:
        values = torch.from_numpy(arguments)
        for span, operation in operations:
            for row, place in zip(range(span.start, span.stop), members[span].tolist()):
                images[place] = operation(images[place : place + 1], values[row : row + 1])[0]
        return
    places = torch.from_numpy(members).to(images.device, non_blocking=True)
    values = torch.from_numpy(arguments).to(images.device, non_blocking=True)
    gathered = images.index_select(0, places)
    for span, operation in operations:
        piece = gathered[span]
        piece.copy_(operation(piece, values[span]))
    images.index_copy_(0, places, gathered)


def apply_to(images: Tensor, members: Indices, operation: Operation, arguments: Floats) -> None:
    """Replace images[members] by operation(images[members], arguments)."""
    if len(members):
        apply_in_groups(images, np.asarray(members), [(slice(0, len(members)), operation)], arguments)
