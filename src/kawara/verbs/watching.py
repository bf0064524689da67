"""The doctor of a training run: says before it what can be expected, looks on while it learns, and stops it where nothing will come of it.

What is seen goes into the journal: "look" (one `Look` each), "attention" (entropy of each layer), "remark" (something worth a word, in two
languages), "stopped" (reason and command). All judgement is made from these records, so that a resumed run is judged as one that was
never interrupted. `doctor=warn` says what `doctor=stop` stops for; `doctor=off` does not look.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch

from kawara.analysis.attention_statistics import attention_statistics
from kawara.analysis.observed_attention import attention_places
from kawara.data.loading import Batch
from kawara.errors import DivergedError, HopelessError, KawaraError
from kawara.recipes.advice import Remark, advice
from kawara.recipes.known_results import KnownResult, nearest_results
from kawara.recipes.rates import Rate, rates
from kawara.runtime import autocast_dtype
from kawara.tasks.classification import classify
from kawara.tasks.distillation import Distillation
from kawara.training.chance import Chance
from kawara.training.divergence import first_layer_not_finite
from kawara.training.hopelessness import Look, is_due, judge
from kawara.training.loop import Loop
from kawara.verbs import findings
from kawara.verbs.evaluation import EVALUATION_BATCH
from kawara.verbs.mending import command, mended
from kawara.verbs.planning import TrainRequest
from kawara.verbs.preparing import Run, Work

MAX_LOOKED_AT = 512
"""Validation images that a look takes: with so many the accuracy is known within 6 points."""
ATTENTION_IMAGES = 8
COLLAPSED_SHARE = 0.1
"""Of log N: a query of 197 tokens then looks at 1.7 of them. Healthy blocks were seen at 0.27 and more, collapsed ones below 0.09."""


class Doctor:
    """Watches one run; an `Observer` of its loop."""

    def __init__(self, run: Run, work: Work, request: TrainRequest):
        config = run.config
        self.run, self.work, self.request, self.config = run, work, request, config
        self.journal = run.folder.journal
        self.steps_per_epoch = work.train.num_batches // config.accumulate
        self.chance = Chance.of(
            run.train.labels,
            run.validation.labels,
            len(run.images.class_names),
            smoothing=config.task.label_smoothing,
            balanced=config.sampler.balanced,
        )

    def before(self) -> None:
        """Say what chance gives, what like data gave, and what of the settings asked for seldom goes well."""
        if self.config.doctor == "off":
            return
        for remark in (findings.expectation(self.chance, self._nearest()), *self._advice()):
            self._say(remark, 0)

    def is_due(self, step: int) -> bool:
        """Whether `step` ends an epoch that is looked at."""
        return self.config.doctor != "off" and step % self.steps_per_epoch == 0 and is_due(step // self.steps_per_epoch)

    def look(self, loop: Loop) -> None:
        """See what the epoch gave. Raises HopelessError where nothing will come of the run."""
        seen = self._seen(loop)
        self.journal.write("look", seen.step, **{name: value for name, value in dataclasses.asdict(seen).items() if name != "step"})
        by_step = {record["step"]: record for record in self.journal.read() if record["event"] == "look" and record["step"] <= seen.step}
        fields = [field.name for field in dataclasses.fields(Look)]
        looks = [Look(**{name: record[name] for name in fields}) for _, record in sorted(by_step.items())]
        verdict = judge(looks, self.chance, self.steps_per_epoch)
        if verdict is None:
            return
        numbers, mending = findings.evidence(verdict, seen, self.chance, self._rate, self.config.optimizer.name), self._mending()
        if not verdict.hopeless or self.config.doctor == "warn" or seen.progress >= 1:  # a run at its end can as well be evaluated
            self._say(findings.verdict_in_words(verdict, seen, self.chance, numbers, mending), seen.step)
            return
        self.journal.write("stopped", seen.step, kind=verdict.kind, reason=numbers, command=mending)
        raise HopelessError(
            f"{findings.title(verdict, seen)} It was stopped; what there is of it is in {self.run.folder.path}, and --resume --set "
            "doctor=warn would go on with it.",
            got=numbers,
            remedy=mending,
        )

    def after_validation(self, loop: Loop) -> None:
        """See whether the attention of a layer has collapsed to single tokens."""
        if self.config.doctor == "off" or self.config.model.frozen_backbone or not attention_places(self.run.model):
            return
        try:
            found = attention_statistics(self.run.model, [self._images])
        except KawaraError:  # attention that cannot be verified, as with weights that are not finite: other rules speak of that
            return
        if found.layout.num_tokens == 1:
            return
        shares = found.entropy_nats.mean(axis=1) / math.log(found.layout.num_tokens)
        step = loop.progress.step
        self.journal.write("attention", step, entropy_share=[round(float(share), 4) for share in shares])
        collapsed = [place for place, share in zip(found.places, shares) if share < COLLAPSED_SHARE]
        if collapsed:
            self._say(findings.collapsed_attention(collapsed, step, COLLAPSED_SHARE), step)

    @contextlib.contextmanager
    def explaining(self, loop: Loop) -> Iterator[None]:
        """Add to a DivergedError the layer where it began and the command that mends the run."""
        try:
            yield
        except DivergedError as error:
            layer = first_layer_not_finite(self.run.model, lambda: self._repeat(loop))
            mending = self._mending()
            what = error.what + (f" The first layer that is not finite is {layer}." if layer else "")
            self.journal.write("stopped", loop.progress.step, reason=f"{what} {error.got}", command=mending)
            raise DivergedError(what, got=error.got, remedy=mending) from None

    def _repeat(self, loop: Loop) -> None:
        """Compute the losses of the loop's last step again, with the same draws."""
        step = loop.progress.step
        torch.manual_seed((self.config.seed * 1_000_003 + step) % 2**63)  # as the loop seeds it
        for number, batch in enumerate(loop.latest):
            with torch.autocast(self.run.device.type, dtype=loop.dtype, enabled=loop.dtype is not None):
                self.work.task.loss(self.work.model, batch, step * len(loop.latest) + number)

    def _seen(self, loop: Loop) -> Look:
        config, step = self.config, loop.progress.step
        loss, right, shown = self._last_epoch(step)
        probabilities, labels = classify(self.work.model, self._validation(), autocast_dtype(config.precision, self.run.device))
        group = loop.optimizers[0].param_groups[0]
        return Look(
            step=step,
            epoch=step // self.steps_per_epoch,
            progress=round(loop.clock.progress(step), 5),
            loss=None if isinstance(self.work.task, Distillation) else loss,
            training_right=round(right / config.sampler.repeats),
            training_images=round(shown / config.sampler.repeats),
            validation_right=int((np.nan_to_num(probabilities).argmax(axis=1) == labels).sum()),
            validation_images=len(labels),
            rate=self._rate.excess * group["lr"] / group["peak_lr"] if group["peak_lr"] else 0.0,
            steps_since_warmup=self._steps_since_warmup(loop),
        )

    def _last_epoch(self, step: int) -> tuple[float | None, float, int]:
        """Return loss, right answers and images of the last epoch from the journal, whose windows may begin a little before it."""
        by_step = {record["step"]: record for record in self.journal.read() if record["event"] == "train" and record["step"] <= step}
        records = [by_step[number] for number in sorted(by_step)]
        before = [0, *sorted(by_step)]
        size = self.config.batch_size * self.config.accumulate
        windows = [
            (record, (record["step"] - earlier) * size)
            for record, earlier in zip(records, before)
            if record["step"] > step - self.steps_per_epoch
        ]
        shown = sum(count for _, count in windows)
        right = sum(record["accuracy"] * count for record, count in windows)
        if not shown or any(record["loss"] is None for record, _ in windows):
            return None, right, shown
        return sum(record["loss"] * count for record, count in windows) / shown, right, shown

    def _steps_since_warmup(self, loop: Loop) -> int:
        warmup = loop.schedule.warmup
        steps = warmup.steps(self.steps_per_epoch)
        if steps is None:  # a share of the run, which may be one in minutes
            progress = loop.clock.progress(loop.progress.step)
            steps = loop.progress.step * min(1.0, warmup.amount / 100 / max(progress, 1e-9))
        return max(0, loop.progress.step - round(steps))

    @cached_property
    def _rate(self) -> Rate:
        """The most unusual rate of the run."""
        config = self.config
        width = getattr(self.run.model.config, "width", None)
        return rates(config.optimizer, config.batch_size * config.accumulate, width, frozen_backbone=config.model.frozen_backbone)[0]

    @cached_property
    def _looked_at(self) -> np.ndarray:
        count = len(self.run.validation)
        return np.unique(np.linspace(0, count - 1, min(count, MAX_LOOKED_AT)).astype(int))

    @cached_property
    def _images_u8(self) -> torch.Tensor:
        split = self.run.validation
        return torch.stack([self.run.card.preprocessing.place(split.store[int(index)]) for index in self._looked_at])

    @property
    def _images(self) -> torch.Tensor:
        """A few of the validation images that are looked at, spread over them, normalised."""
        return self.run.card.preprocessing.normalise(self._images_u8[:: -(-len(self._images_u8) // ATTENTION_IMAGES)].to(self.run.device))

    def _validation(self) -> Any:
        """Yield the validation images that are looked at; with a frozen backbone, the features of all."""
        if self.config.model.frozen_backbone:
            yield from self.work.evaluation[self.run.validation.name]
            return
        labels = torch.from_numpy(self.run.validation.labels[self._looked_at])
        for start in range(0, len(labels), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            images = self.run.card.preprocessing.normalise(self._images_u8[part].to(self.run.device))
            yield Batch(images, labels[part], torch.from_numpy(self._looked_at[part]))

    def _advice(self) -> list[Remark]:
        return advice(
            self.config,
            self.run.model.config,
            self.run.plan.asked,
            num_images=len(self.run.train),
            num_classes=self.chance.num_classes,
            image_size_px=self.run.card.preprocessing.image_size[0],
            steps_per_epoch=self.steps_per_epoch,
        )

    def _nearest(self) -> list[KnownResult]:
        return nearest_results(
            len(self.run.train),
            self.chance.num_classes,
            self.run.card.preprocessing.image_size[0],
            grey=self.config.data.color == "grey",
            pretrained=bool(self.config.model.pretrained),
        )

    def _mending(self) -> str:
        folder = self.run.folder.path
        better = mended(self.request, self.config, folder=folder, num_images=len(self.run.train), on_cpu=self.run.device.type == "cpu")
        return command(better, folder)

    def _say(self, remark: Remark, step: int) -> None:
        """Print a remark and write it down; the second time it is known already."""
        said = {record["code"] for record in self.journal.read() if record["event"] == "remark" and record["step"] <= step}
        if remark.code not in said:
            self.run.reporter.say(remark.en)
            self.journal.write("remark", step, code=remark.code, en=remark.en, ja=remark.ja)
