"""Compare an exported model with the one in torch: agreement, accuracy, size and latency, and whether that is good enough.

Refused is an export that loses more top-1 accuracy than allowed, one in fp32 whose probabilities differ by more than 1e-4 anywhere, and one
that answers with anything but numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kawara.tasks.metrics import accuracy_interval

Image = npt.NDArray[np.uint8]
Answer = Callable[[Image], npt.NDArray[np.float32]]
"""One image (H, W, C) to probabilities (K,)."""

MAX_DIFFERENCE = 1e-4
"""Between probabilities, for fp32."""
NEAR_TIES = 0.01
"""The share of images that may differ by more where tokens are merged: which of two pairs is more alike, rounding may decide."""
NOISE_IMAGES = 16

_WARM_UP, _REPEATS = 3, 30


@dataclass(frozen=True)
class Certificate:
    """What was measured of an export, and the judgement. Accuracies are fractions, latencies milliseconds at batch 1."""

    file: str
    to: str
    precision: str
    num_bytes: int
    images: str
    """Which images were shown."""
    num_images: int
    agreement: float
    """Share of images with the same likeliest class."""
    max_difference: float | None
    """The largest difference between two probabilities; None where the export gave anything but numbers."""
    worst_image: str
    accuracy: dict[str, Any] | None
    """`torch` and `export`, each {"top1", "top1_ci95"}, and `drop_points`; None without labelled images."""
    latency: dict[str, Any]
    """`torch`, `export` and for int8 `fp32` (the same graph in float32), each {"p50_ms", "p95_ms"}; `threads`, `repeats`, `image_size`."""
    refused: list[str]
    """Why it is refused; empty for an export that may be used."""
    environment: dict[str, Any] = field(default_factory=dict)
    merging: dict[str, Any] | None = None
    """Of an export that merges tokens: `r`, and how it was chosen. It is compared in numbers with torch merging as well, in accuracy and
    latency with torch as the model was given; None for others."""
    int8: dict[str, Any] | None = None
    """How it was quantised: calibration, variants, attempts, layers left in float, layers to blame; None for other precisions."""

    @property
    def accepted(self) -> bool:
        return not self.refused

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"accepted": self.accepted, **asdict(self)}


@dataclass(frozen=True)
class Comparison:
    """Answers of both to the same images."""

    reference: npt.NDArray[np.float32]
    """(n, K), of torch."""
    exported: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64] | None
    keys: list[str]
    original: npt.NDArray[np.float32] | None = None
    """(n, K), of torch before what the reference changed of purpose; None where that is nothing."""

    @property
    def before(self) -> npt.NDArray[np.float32]:
        """What accuracy is compared with: the model as it was given."""
        return self.reference if self.original is None else self.original


def compare(
    images: Iterator[Image],
    labels: npt.NDArray[np.int64] | None,
    keys: list[str],
    reference: Answer,
    exported: Answer,
    original: Answer | None = None,
) -> Comparison:
    """Ask both about every image, one by one, and `original` where there is one."""
    asked = [reference, exported] if original is None else [reference, exported, original]
    answers = [[answer(image) for answer in asked] for image in images]
    of_reference, of_export, *of_original = (np.stack(column) for column in zip(*answers))
    return Comparison(of_reference, of_export, labels, keys, of_original[0] if of_original else None)


def judge(comparison: Comparison, *, precision: str, max_drop: float, merges: bool = False) -> dict[str, Any]:
    """Return the fields of a certificate that follow from answers. `max_drop` is in points of top-1; `merges`: tokens are merged."""
    reference, exported, labels = comparison.reference, comparison.exported, comparison.labels
    differences = np.abs(reference - exported).max(axis=1)
    finite = bool(np.isfinite(exported).all())
    worst = int(np.argmax(np.where(np.isfinite(differences), differences, np.inf)))
    refused = [] if finite else ["it answers with something that is no number"]
    num_beyond = int((differences > MAX_DIFFERENCE).sum())
    if finite and precision == "fp32" and num_beyond > (NEAR_TIES * len(differences) if merges else 0):
        refused.append(f"a probability differs by {differences[worst]:.1e} from torch; {MAX_DIFFERENCE:.0e} is allowed")
    accuracy: dict[str, Any] | None = None
    if labels is not None:
        right = {name: answers.argmax(axis=1) == labels for name, answers in (("torch", comparison.before), ("export", exported))}
        accuracy = {name: {"top1": float(r.mean()), "top1_ci95": accuracy_interval(r)} for name, r in right.items()}
        drop = 100 * (int(right["torch"].sum()) - int(right["export"].sum())) / len(labels)  # counted, so that 0.5 is 0.5
        accuracy["drop_points"] = drop
        if drop > max_drop:
            refused.append(f"it loses {drop:.2f} points of top-1 accuracy; {max_drop:g} are allowed")
    return {
        "num_images": len(reference),
        "agreement": float((reference.argmax(axis=1) == exported.argmax(axis=1)).mean()),
        "max_difference": float(differences[worst]) if finite else None,
        "worst_image": comparison.keys[worst],
        "accuracy": accuracy,
        "refused": refused,
    }


def time_in_turn(image: Image, asked: Mapping[str, Answer]) -> dict[str, Any]:
    """Return the latency of each for one image, in turn, so that what disturbs the machine disturbs all.

    Where one is called "fp32", `speedup` says how many times as fast "export" is: the median over the turns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for repeat in range(_WARM_UP + _REPEATS):
        for name, answer in asked.items():
            start = time.perf_counter()
            answer(image)
            if repeat >= _WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    latency: dict[str, Any] = {"repeats": _REPEATS, "image_size": list(image.shape[:2])}
    for name, values in seconds.items():
        p50, p95 = 1000 * np.percentile(values, [50, 95])
        latency[name] = {"p50_ms": float(p50), "p95_ms": float(p95)}
    if "fp32" in seconds:
        latency["speedup"] = float(np.median(np.divide(seconds["fp32"], seconds["export"])))
    return latency


def noise_images(channels: int, sides: Sequence[int], count: int = NOISE_IMAGES, seed: int = 0) -> list[Image]:
    """Return images of random pixels whose heights and widths are drawn from `sides`."""
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 256, (*draw.choice(sides, 2), channels), dtype=np.uint8) for _ in range(count)]
