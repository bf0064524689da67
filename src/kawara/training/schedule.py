"""How long to train, and the learning rate on the way: warm-up, then annealing.

With p the share of training done (steps done, or minutes gone), and w the warm-up:

    factor(p) = min(1, warm-up share) · ( f + (1 − f) · anneal(q) ),   q = (p − p_w) / (1 − p_w)
    anneal(q) = ½(1 + cos πq) for "cosine", 1 − q for "linear", 1 for "constant"

the per-iteration form of MAE (2111.06377). timm's and DeiT's schedule counts the cosine from the start
(q = p): `anneal_from_start`.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import Literal

from kawara.errors import ConfigError

Unit = Literal["steps", "epochs", "minutes", "%"]

_UNITS: dict[str, Unit] = {"step": "steps", "epoch": "epochs", "minute": "minutes", "min": "minutes", "%": "%"}


@dataclass(frozen=True)
class Duration:
    """A length of training: `Duration(300, "epochs")`, written "300 epochs"."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read "300 epochs", "1000 steps", "5 minutes" or "2%". Raises ConfigError otherwise."""
        match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(steps?|epochs?|minutes?|min|%)\s*", text)
        try:
            amount = float(match[1]) if match else math.nan
        except ValueError:
            amount = math.nan
        if match is None or not amount >= 0:
            raise ConfigError("A length is an amount and a unit.", got=repr(text), allowed='"300 epochs", "1000 steps", "5 minutes", "2%"')
        unit = match[2]
        return cls(amount, _UNITS[unit.rstrip("s") if unit != "%" else "%"])

    def __str__(self) -> str:
        return f"{self.amount:.15g}{'' if self.unit == '%' else ' '}{self.unit}"

    def steps(self, steps_per_epoch: int) -> int | None:
        """Return the number of steps, or None where only the clock or the whole length can tell."""
        if self.unit == "steps":
            return round(self.amount)
        if self.unit == "epochs":
            return round(self.amount * steps_per_epoch)
        return None


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over time, as a factor of its peak."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: str = "2%"
    final: float = 0.0
    anneal_from_start: bool = False


class Clock:
    """Say how much of the training is done: by steps, or by the time that is gone.

    `seconds_before` is what an interrupted run had already used; `reserve` is the time that evaluation and writing
    will take at the end of a run with a length in minutes.
    """

    def __init__(self, length: Duration, steps_per_epoch: int, *, started_at: float | None = None, seconds_before: float = 0.0):
        self.length, self.steps_per_epoch = length, steps_per_epoch
        self.total_steps = length.steps(steps_per_epoch)
        self.reserve = 0.0
        self._started_at = (time.monotonic() if started_at is None else started_at) - seconds_before
        self._training_from: float | None = None

    @property
    def seconds(self) -> float:
        """The time used so far, that of an interrupted run included."""
        return time.monotonic() - self._started_at

    def start_training(self, seconds_before_training: float | None = None) -> float:
        """Begin to count the share of training; returns the seconds at which it began (given on a resume)."""
        self._training_from = self.seconds if seconds_before_training is None else seconds_before_training
        return self._training_from

    def progress(self, step: int) -> float:
        """Return the share of training done after `step` steps, in [0, 1]."""
        if self.total_steps is not None:
            return min(1.0, step / max(self.total_steps, 1))
        assert self._training_from is not None
        available = self.length.amount * 60 - self.reserve - self._training_from
        return min(1.0, max(0.0, (self.seconds - self._training_from) / max(available, 1e-9)))

    def seconds_left(self, step: int) -> float | None:
        """Estimate the seconds of training left, None before there is a rate."""
        done = self.progress(step)
        if done <= 0 or self._training_from is None:
            return None
        return (self.seconds - self._training_from) * (1 - done) / done


class Schedule:
    """The learning-rate factor at a step and a share of training."""

    def __init__(self, config: ScheduleConfig, clock: Clock):
        self.config, self.clock = config, clock
        self.warmup = Duration.parse(config.warmup)
        if self.warmup.unit == "minutes":
            raise ConfigError("The warm-up is given in steps, epochs or %.", got=config.warmup)
        if not 0 <= config.final <= 1:
            raise ConfigError("schedule.final is the share of the peak learning rate at the end.", got=config.final, allowed="0 to 1")
        self._warmup_steps = self.warmup.steps(clock.steps_per_epoch)
        if self._warmup_steps and clock.total_steps and self._warmup_steps >= clock.total_steps:
            raise ConfigError(
                "The warm-up is as long as the whole run.",
                got=f"{config.warmup} of warm-up, {clock.total_steps} steps in all",
                remedy="--set schedule.warmup=5%",
            )
        self._progress_at_warmup = self.warmup.amount / 100 if self._warmup_steps is None else None
        if self._warmup_steps is not None and clock.total_steps:
            self._progress_at_warmup = min(1.0, self._warmup_steps / clock.total_steps)

    def factor(self, step: int, progress: float) -> float:
        """Return the factor of the peak learning rate for the step numbered `step` (from 0)."""
        warm = self._warm(step, progress)
        if warm < 1:
            return warm * (self._anneal(progress) if self.config.anneal_from_start else 1.0)
        if self._progress_at_warmup is None:  # steps of warm-up in a run measured in minutes: known only now
            self._progress_at_warmup = progress
        start = 0.0 if self.config.anneal_from_start else self._progress_at_warmup
        return self._anneal((progress - start) / max(1 - start, 1e-9))

    def _warm(self, step: int, progress: float) -> float:
        if self._warmup_steps is not None:
            return min(1.0, (step + 1) / self._warmup_steps) if self._warmup_steps else 1.0
        share = self.warmup.amount / 100
        return min(1.0, (progress + 1e-3) / share) if share else 1.0

    def _anneal(self, q: float) -> float:
        q = min(1.0, max(0.0, q))
        if self.config.kind == "constant":
            return 1.0
        shape = 1 - q if self.config.kind == "linear" else 0.5 * (1 + math.cos(math.pi * q))
        return self.config.final + (1 - self.config.final) * shape
