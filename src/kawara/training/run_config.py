"""Everything that decides the outcome of a training run, in one frozen record. Stored with the run and in the model file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..data.augment import AugmentConfig
from ..data.sampling import SamplerConfig
from ..runtime import Precision
from ..tasks.classification import ClassificationConfig
from .optimizer import OptimizerConfig
from .schedule import Duration, ScheduleConfig


@dataclass(frozen=True)
class ModelSettings:
    """Which model, and what of it differs from its row in `kawara models`.

    `stochastic_depth` and `dropout` are rates in [0, 1); `options` are other fields of the model's configuration,
    such as `{"registers": 4}`.
    """

    name: str = "vit_tiny_16"
    stochastic_depth: float = 0.0
    dropout: float = 0.0
    options: dict[str, int | float | bool | str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSettings:
    """How images are read and split.

    `image_size` 0 lets kawara choose; `color` "auto" keeps grey data sets grey; `val_fraction` is the share held out
    of the training images where the data set has no validation part.
    """

    image_size: int = 0
    color: Literal["auto", "rgb", "grey"] = "auto"
    crop_fraction: float = 0.0
    val_fraction: float = 0.1
    split_seed: int = 0


@dataclass(frozen=True)
class RunConfig:
    """A complete training run. `length` and `schedule.warmup` are written "300 epochs", "1000 steps", "5 minutes"."""

    recipe: str = "custom"
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    task: ClassificationConfig = field(default_factory=ClassificationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    length: str = "100 epochs"
    batch_size: int = 64
    accumulate: int = 1
    average_decay: float = 0.0
    precision: Precision = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    threads: int = 0
    workers: int = 0
    seed: int = 0

    @property
    def parsed_length(self) -> Duration:
        """The length as an amount and a unit."""
        return Duration.parse(self.length)
