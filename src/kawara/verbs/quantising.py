"""The int8 part of `kawara export`: settings, attempts, and the retreat of layers to float where too much is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kawara.data.preprocessing import Preprocessing
from kawara.edge.certificate import Comparison
from kawara.edge.int8 import quantised, usual_weight_bits
from kawara.errors import ConfigError
from kawara.models.interface import ImageModel
from kawara.training.progress import Reporter
from kawara.verbs.export_images import Calibration

Images = Callable[[], Iterable[np.ndarray]]

_BATCH = 32
_MOST_ATTEMPTS = 4


@dataclass(frozen=True)
class Int8Settings:
    """What was asked for."""

    data: str | Path
    calibrate: str | Path | None
    fallback: str
    weight_bits: int

    @classmethod
    def checked(
        cls, precision: str, data: str | Path | None, calibrate: str | Path | None, fallback: str | None, weight_bits: int | None
    ) -> Int8Settings | None:
        """Return the settings of an int8 export, None for another precision. Raises ConfigError for what does not go together."""
        if precision != "int8":
            given = {"--calibrate": calibrate, "--fallback": fallback, "--weight-bits": weight_bits}
            for option, value in given.items():
                if value is not None:
                    raise ConfigError(f"{option} acts only with --precision int8.", got=f"--precision {precision}")
            return None
        if data is None:
            raise ConfigError(
                "int8 changes answers: labelled images must show that they are still good.", remedy="--data DATA, as for kawara evaluate"
            )
        if fallback not in (None, "mixed", "none"):
            raise ConfigError("--fallback is not known.", got=fallback, allowed="mixed, none")
        if weight_bits not in (None, 7, 8):
            raise ConfigError("Weights have 7 or 8 bits.", got=weight_bits, allowed="7, 8")
        return cls(data, calibrate, fallback or "mixed", weight_bits or usual_weight_bits())


class Int8Export:
    """An int8 network on its way out: it is written, judged, and written again with more layers in float until it is good."""

    def __init__(
        self, network: ImageModel, calibration: Calibration, preprocessing: Preprocessing, settings: Int8Settings, reporter: Reporter
    ):
        self._calibration, self._preprocessing, self._settings, self._reporter = calibration, preprocessing, settings, reporter
        images = preprocessing.normalise(calibration.images_u8)
        self._int8 = quantised(network, images, preprocessing, weight_bits=settings.weight_bits, progress=self._progress)
        self._attempts: list[dict[str, Any]] = []

    @property
    def network(self) -> ImageModel:
        """The network that is traced, inside `in_place`."""
        return self._int8.network

    def in_place(self) -> AbstractContextManager[nn.Module]:
        """Put the int8 layers into the network inside the block."""
        return self._int8.in_place()

    def retreat(self, found: dict[str, Any], comparison: Comparison, images: Images, max_drop: float) -> bool:
        """Take note of an attempt; where it lost too much, leave more layers in float and say that it is worth another."""
        drop, latency = found["accuracy"]["drop_points"], found["latency"]
        timed = {name: latency[name] for name in ("export", "fp32", "speedup")}
        self._attempts.append({"float_layers": list(self._int8.kept), "drop_points": drop, "latency": timed})
        if drop <= max_drop:
            return False
        worst = ", ".join(f"{damage.layer} ({damage.kl:.2g})" for damage in self._int8.blame(self._progress)[:3])
        self._reporter.say(f"int8 loses {drop:.2f} points, {max_drop:g} are allowed. Layers that do most of it alone (KL): {worst}")
        if self._settings.fallback == "none" or len(self._attempts) == _MOST_ATTEMPTS:
            return False
        assert comparison.labels is not None
        labels = comparison.labels
        right = int((comparison.before.argmax(axis=1) == labels).sum())

        def loses_little(network: nn.Module) -> bool:
            return 100 * (right - self._right(network, images, labels)) / len(labels) <= max_drop

        if not self._int8.keep_worst(loses_little, self._progress):
            return False
        self._reporter.say(f"left in float: {', '.join(self._int8.kept)}")
        return True

    @torch.no_grad()
    def _right(self, network: nn.Module, images: Images, labels: np.ndarray) -> int:
        """Return how many images a network answers right in torch, which is nearly how many the export will."""
        title = f"trying with {len(self._int8.kept)} layers in float"
        guesses: list[int] = []
        placed: list[torch.Tensor] = []
        for number, image in enumerate(images(), start=1):
            placed.append(self._preprocessing.place(image))
            if len(placed) == _BATCH or number == len(labels):
                self._progress(title, number, len(labels))
                guesses += network(self._preprocessing.normalise(torch.stack(placed))).argmax(dim=-1).tolist()
                placed.clear()
        return int((np.array(guesses) == labels).sum())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "calibration": self._calibration.record,
            **self._int8.to_dict(),
            "fallback": self._settings.fallback,
            "attempts": self._attempts,
        }

    def _progress(self, title: str, done: int, total: int) -> None:
        self._reporter.progress(title, done / total, f"{done} of {total}")
