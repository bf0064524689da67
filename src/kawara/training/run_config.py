"""Everything that decides the outcome of a training run, in one frozen record. Stored with the run and in the model file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kawara.data.augment import AugmentConfig
from kawara.data.sampling import SamplerConfig
from kawara.errors import ConfigError
from kawara.runtime import Precision
from kawara.tasks.classification import ClassificationConfig
from kawara.tasks.distillation import DistillationConfig
from kawara.training.optimizer import OptimizerConfig
from kawara.training.schedule import Duration, ScheduleConfig


@dataclass(frozen=True)
class ModelSettings:
    """Which model, and what of it differs from its row in `kawara models`.

    `pretrained` is a checkpoint to begin with, a path or hub:owner/name; empty: from scratch. `freeze` holds part of it still:
    "none", "backbone" (everything but the head) or a number of blocks from the input. `stochastic_depth` and `dropout` are rates in
    [0, 1); `options` are other fields of the configuration of a model from scratch, such as `{"registers": 4}`.
    """

    name: str = "vit_tiny_16"
    pretrained: str = ""
    freeze: str = "none"
    stochastic_depth: float = 0.0
    dropout: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.freeze not in ("none", "backbone") and not (self.freeze.isdecimal() and int(self.freeze) >= 1):
            raise ConfigError("What is to be frozen is not clear.", got=self.freeze, allowed="none, backbone, or a number of blocks")
        if self.freeze != "none" and not self.pretrained:
            raise ConfigError(
                "Only what was trained before can be frozen.", got=f"freeze {self.freeze}", remedy="--pretrained FILE or hub:owner/name"
            )
        if self.options and self.pretrained:
            raise ConfigError(
                "A pretrained model has its architecture; model.options change only one from scratch.", got=", ".join(self.options)
            )

    @property
    def frozen_backbone(self) -> bool:
        """Whether only the head is trained."""
        return self.freeze == "backbone"


@dataclass(frozen=True)
class DataSettings:
    """How images are read and split.

    0 and "auto" let kawara choose. `color` "auto" keeps grey data sets grey; `val_fraction` is the share of the images that
    is held out for validation where the data set has no such part, and once more for a test part where there are no parts.
    """

    image_size: int = 0
    color: Literal["auto", "rgb", "grey"] = "auto"
    crop_fraction: float = 0.0
    val_fraction: float = 0.0
    split_seed: int = 0


@dataclass(frozen=True)
class RunConfig:
    """A complete training run. `length` and `schedule.warmup` are written "300 epochs", "1000 steps", "5 minutes".

    `batch_size` is that of all processes together; `shard` divides the model among them, where it is too large for one device. `doctor` is
    what happens to a run that learns nothing: it is stopped, it is told so, or nobody looks.
    """

    recipe: str = "custom"
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    task: ClassificationConfig = field(default_factory=ClassificationConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    length: str = "100 epochs"
    batch_size: int = 64
    accumulate: int = 1
    average_decay: float = 0.0
    precision: Precision = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    shard: bool = False
    threads: int = 0
    workers: int = 0
    seed: int = 0
    doctor: Literal["stop", "warn", "off"] = "stop"

    def __post_init__(self) -> None:
        if self.parsed_length.unit == "%" or self.parsed_length.amount <= 0:
            raise ConfigError("The length of training is a positive number of steps, epochs or minutes.", got=self.length)
        for name in ("batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1.", got=getattr(self, name))
        for name in ("workers", "threads", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} cannot be negative.", got=getattr(self, name))
        if not 0 <= self.average_decay < 1:
            raise ConfigError(
                "average_decay is the share of the old average that stays.", got=self.average_decay, allowed="0 (off) to below 1"
            )

    @property
    def parsed_length(self) -> Duration:
        """The length as an amount and a unit."""
        return Duration.parse(self.length)
