"""The loop: batch → loss → gradients → step, with validation, checkpoints and an honest clock. For every task and model.

Every random number that training needs is a function of (seed, step): the generator is seeded anew at each step, the
loader draws from counters. A run that is interrupted and resumed therefore ends with the same bits.

Where several processes train together (`training/distributed.py`), each runs this loop on its share of the batches. The first one's clock
decides for all, and it alone writes.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Protocol

import torch
from torch import Tensor, nn

from kawara.data.loading import Batch
from kawara.errors import ConfigError, DivergedError, KawaraError, OutOfMemoryError
from kawara.runtime import peak_memory_bytes
from kawara.training.averaging import WeightAverage
from kawara.training.checkpoint import read_progress
from kawara.training.distributed import ALONE, LossFunction, World
from kawara.training.optimizer import build_optimizers, clip_gradients, set_rate
from kawara.training.precision import training_dtype
from kawara.training.progress import Reporter, format_seconds
from kawara.training.run_config import RunConfig
from kawara.training.run_folder import RunFolder
from kawara.training.schedule import Clock, Schedule

NUM_VALIDATIONS = 10
JOURNAL_INTERVAL_S = 5.0
SAVE_INTERVAL_S = 120.0
SAFETY_S = 4.0


class TrainingBatches(Protocol):
    """Where the batches of an epoch come from: `TrainLoader`, or `FeatureLoader`."""

    @property
    def num_batches(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...


class Task(Protocol):
    """What the loop needs to know of a task."""

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Return the loss and the number of images that were called right."""
        ...


class Observer(Protocol):
    """Somebody who looks on, and may end the run by raising a UserError. Reads the journal, so that a resumed run is seen alike."""

    def is_due(self, step: int) -> bool:
        """Whether `look` is wanted after so many steps."""
        ...

    def look(self, loop: Loop) -> None:
        """See where the run stands; every step so far is in the journal."""
        ...

    def after_validation(self, loop: Loop) -> None:
        """See the model that was just validated."""
        ...


@dataclass
class Progress:
    """Where a run stands; all of it goes into the checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    training_from: float = 0.0
    best_score: float = -math.inf
    best_step: int = -1
    validated_at: float = 0.0
    training_seconds: float = 0.0
    """Of steps alone, validation and saving left out."""
    journal_bytes: int = 0


@dataclass(frozen=True)
class FitResult:
    """How a run ended. `state` holds the weights to keep (the average, where one is kept)."""

    state: dict[str, Tensor]
    steps: int
    epochs: float
    seconds: float
    images_per_second: float
    peak_memory_bytes: int
    interrupted: bool


class Loop:
    """One run of training."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        train: TrainingBatches,
        validate: Callable[[nn.Module], dict[str, float]],
        config: RunConfig,
        folder: RunFolder,
        *,
        device: torch.device,
        reporter: Reporter,
        started_at: float | None = None,
        keys: list[str] | None = None,
        world: World = ALONE,
        observer: Observer | None = None,
    ):
        self.model, self.task, self.train, self.validate = model, task, train, validate
        self.config, self.folder, self.device, self.reporter = config, folder, device, reporter
        self.keys, self.world, self.observer = keys, world, observer
        self.latest: list[Batch] = []
        """The batches of the present step."""
        self.dtype = training_dtype(config.precision, device, model)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.optimizers = build_optimizers(model, config.optimizer, config.batch_size * config.accumulate)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.average = WeightAverage(model, config.average_decay) if config.average_decay else None
        if config.accumulate > train.num_batches:
            raise ConfigError(
                f"accumulate={config.accumulate} asks for more batches than an epoch has.",
                got=f"{train.num_batches} batches of {config.batch_size}",
            )
        self.steps_per_epoch = train.num_batches // config.accumulate
        self.clock = Clock(config.parsed_length, self.steps_per_epoch, started_at=started_at)
        self.schedule = Schedule(config.schedule, self.clock)
        self.progress = Progress()
        self._stop_requested = False
        self._window = _Window()

    def resume(self) -> None:
        """Take up the state of the last checkpoint, or begin anew where none was written yet; `run_folder` says why nothing is lost.

        Raises ModelFileError if the checkpoint is damaged.
        """
        if self.world.has_checkpoint(self.folder.last):
            saved = self.world.load(self.folder.last, self.model, self.optimizers, self.average)
            self.progress = Progress(**{name: saved[name] for name in asdict(self.progress)})
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(saved["scaler"])
            self.clock = Clock(self.config.parsed_length, self.steps_per_epoch, seconds_before=self.progress.seconds)
            self.schedule = Schedule(self.config.schedule, self.clock)
            best = read_progress(self.folder.best) if self.folder.best.exists() else {"step": -1}
            if best["step"] > self.progress.step:
                self.progress.best_score, self.progress.best_step = best["top1"], best["step"]
        elif self.world.is_first:
            self.folder.best.unlink(missing_ok=True)
        if self.world.is_first:
            self.folder.journal.rewind(self.progress.journal_bytes)

    def fit(self, *, reserve_seconds: float = 0.0) -> FitResult:
        """Train to the end of the configured length. `reserve_seconds` of a length in minutes are left for what follows."""
        if self.clock.length.unit == "minutes":
            self.clock.reserve = min(reserve_seconds + SAFETY_S, self.clock.length.amount * 60 * 0.5)
        resumed = self.progress.step > 0
        self.progress.training_from = self.clock.start_training(self.progress.training_from if resumed else None)
        loss_of = self.world.loss_of(self.task, self._compiled(), self.config.accumulate)
        self.model.train()
        saved_at = time.monotonic()
        with _finish_step_on_interrupt(self):
            share, _, stop = self._agree(saved_at)
            if resumed and self._validation_due(share):  # the run was stopped just before
                self._validate(share)
                self._save()
            resumed_at = time.monotonic()
            for micro_batches in self._steps(share):
                self._step(loss_of, micro_batches, share)
                share, save_due, stop = self._agree(saved_at)
                over = share >= 1 or stop
                validation_due = share >= 1 or self._validation_due(share)
                save_due |= over or validation_due
                look_due = self.observer is not None and not stop and self.observer.is_due(self.progress.step)
                if save_due or look_due or self._window.age() > JOURNAL_INTERVAL_S or self._window.has_unread_losses(self.device):
                    self._flush(share)
                if save_due:
                    self.progress.training_seconds += time.monotonic() - resumed_at
                if validation_due and not stop:  # a stopped run makes up for it when it goes on
                    self._validate(share)
                    if self.observer is not None:
                        self.observer.after_validation(self)
                if look_due and self.observer is not None:
                    self.observer.look(self)
                    self._window = _Window()  # the time of looking is not that of training
                if save_due:
                    self._save()
                    saved_at = resumed_at = time.monotonic()
                    stop = stop or self._agree(saved_at)[2]  # asked for meanwhile: all is saved
                    if over or stop:
                        break
        images = self.progress.step * self.config.batch_size * self.config.accumulate
        return FitResult(
            state=self.average.state if self.average else self.model.state_dict(),
            steps=self.progress.step,
            epochs=self.progress.step / self.steps_per_epoch,
            seconds=self.clock.seconds,
            images_per_second=images / max(self.progress.training_seconds, 1e-9),
            peak_memory_bytes=peak_memory_bytes(self.device),
            interrupted=stop,
        )

    def _agree(self, saved_at: float) -> tuple[float, bool, bool]:
        """Return the share of training done, whether a checkpoint is due by the clock, and whether somebody wants to stop."""
        is_old = time.monotonic() - saved_at > SAVE_INTERVAL_S
        (share, save_due), stop = self.world.agree(self.clock.progress(self.progress.step), is_old, stop=self._stop_requested)
        return share, bool(save_due), stop

    def _validation_due(self, share: float) -> bool:
        done = self.progress.validated_at
        return done < 1 if share >= 1 else int(share * NUM_VALIDATIONS) > int(done * NUM_VALIDATIONS)

    def _compiled(self) -> nn.Module:
        wanted = self.config.compile == "on" or (self.config.compile == "auto" and self.device.type == "cuda")
        return torch.compile(self.model) if wanted else self.model  # type: ignore[return-value]

    def _steps(self, share: float) -> Iterator[list[Batch]]:
        """Yield the batches of every optimiser step, epoch after epoch, from where the run stands: at `share` of its length."""
        per_step = self.config.accumulate
        if share >= 1:
            return
        while True:
            micro_batches: list[Batch] = []
            for batch in self.train.epoch(self.progress.epoch, start=self.progress.batch):
                micro_batches.append(batch)
                if len(micro_batches) == per_step:
                    self.progress.batch += per_step
                    yield micro_batches
                    micro_batches = []
                    if self.progress.batch + per_step > self.train.num_batches:
                        break
            self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0

    def _step(self, loss_of: LossFunction, micro_batches: list[Batch], share: float) -> None:
        step, self.latest = self.progress.step, micro_batches
        factor = self.schedule.factor(step, share)
        set_rate(self.optimizers, factor)
        torch.manual_seed((self.config.seed * 1_000_003 + step) % 2**63)  # dropout and stochastic depth of this step
        try:
            for number, batch in enumerate(micro_batches):
                with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                    loss, right = loss_of(batch, step * len(micro_batches) + number)
                self.scaler.scale(loss / len(micro_batches)).backward()
                self._window.add(step, *self.world.total(loss.detach(), right), batch.whole)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise self._out_of_memory(micro_batches[0]) from None
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        if self.config.optimizer.clip_norm:
            clip_gradients(self.parameters, self.config.optimizer.clip_norm)
        if self.device.type == "cpu":
            self._window.check(self.keys)  # before the step: a loss that is not finite never reaches the weights
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model)
        self.progress.step += 1
        self._window.rate = self.optimizers[0].param_groups[0]["lr"]

    def _flush(self, share: float) -> None:
        """Write what happened since the last record, and show it."""
        if not self._window.losses:
            return
        self._window.check(self.keys)
        record, self._window = self._window.summary(), _Window()
        if not self.world.is_first:
            return
        memory = peak_memory_bytes(self.device)
        epoch = self.progress.step / self.steps_per_epoch
        self.folder.journal.write(
            "train", self.progress.step, epoch=round(epoch, 4), progress=round(share, 5), seconds=round(self.clock.seconds, 2),
            memory_bytes=memory, **record,
        )  # fmt: skip
        left = format_seconds(self.clock.seconds_left(self.progress.step))
        self.reporter.progress(
            "training",
            share,
            f"epoch {epoch:.1f}  loss {record['loss']:.3f}  accuracy {record['accuracy']:.1%}  "
            f"{record['images_per_second']:.0f} images/s  {left} left  {memory / 2**30:.1f} GB",
        )

    def _validate(self, share: float) -> None:
        started = time.monotonic()
        with self._weights_to_keep():
            scores = self.validate(self.model)
            self.progress.validated_at = share
            if scores["top1"] >= self.progress.best_score:  # of equals the later, annealed further
                self.progress.best_score, self.progress.best_step = scores["top1"], self.progress.step
                self.world.save_weights(self.folder.best, self.model, {"step": self.progress.step, **scores})
        if self.world.is_first:
            self.folder.journal.write(
                "validation", self.progress.step, progress=round(share, 5), seconds=round(self.clock.seconds, 2), **scores
            )
        if share >= 1 or not self.reporter.console.is_terminal:
            self.reporter.say(
                f"validation at step {self.progress.step}: accuracy {scores['top1']:.2%}, NLL {scores['nll']:.3f} "
                f"({time.monotonic() - started:.1f} s)"
            )
        self._window = _Window()

    @contextlib.contextmanager
    def _weights_to_keep(self) -> Iterator[None]:
        """Let the model have the averaged weights for a while, where an average is kept."""
        if self.average is None:
            yield
            return
        self.average.swap(self.model)
        try:
            yield
        finally:
            self.average.swap(self.model)

    def _save(self) -> None:
        self.progress.seconds = self.clock.seconds
        if self.world.is_first:
            self.progress.journal_bytes = self.folder.journal.sync()
        state = asdict(self.progress)
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        self.world.save(self.folder.last, self.model, self.optimizers, self.average, state)

    def _out_of_memory(self, batch: Batch) -> KawaraError:
        """Find, by halving, a batch that fits, and say so."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        size = self.config.batch_size // 2
        while size >= 1 and self.world.size == 1:  # with others, the search would wait for them
            try:
                part = Batch(batch.images[:size], batch.labels[:size], batch.indices[:size])
                self.task.loss(self.model, part, 0)[0].backward()
                break
            except (torch.OutOfMemoryError, RuntimeError):
                size //= 2
        remedy = "a smaller model or image size" if size < 1 else (
            f"--set batch_size={size} --set accumulate={math.ceil(self.config.batch_size / size) * self.config.accumulate}"
        )  # fmt: skip
        known = f"; {size or 'none'} would" if self.world.size == 1 else f" of {self.world.size} processes"
        return OutOfMemoryError(f"A batch of {self.config.batch_size} images does not fit into memory{known}.", remedy=remedy)


class _Window:
    """Losses since the last record, read from the device only when needed."""

    def __init__(self) -> None:
        self.started_at = time.monotonic()
        self.losses: list[Tensor] = []
        self.right: list[Tensor] = []
        self.batches: list[tuple[int, Tensor]] = []
        self.num_images = 0
        self.rate = 0.0
        self._checked = 0

    def add(self, step: int, loss: Tensor, right: Tensor, indices: Tensor) -> None:
        self.losses.append(loss)
        self.right.append(right)
        self.batches.append((step, indices))
        self.num_images += len(indices)

    def age(self) -> float:
        return time.monotonic() - self.started_at

    def has_unread_losses(self, device: torch.device) -> bool:
        return device.type != "cpu" and len(self.losses) - self._checked >= 50

    def check(self, keys: list[str] | None) -> None:
        """Raise DivergedError, naming step and files, if a loss is not finite."""
        unread = self.losses[self._checked :]
        if not unread or bool(torch.isfinite(torch.stack(unread)).all()):
            self._checked = len(self.losses)
            return
        for loss, (step, indices) in zip(unread, self.batches[self._checked :]):
            if not bool(torch.isfinite(loss)):
                names = [keys[int(i)] for i in indices] if keys is not None else [str(int(i)) for i in indices]
                shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
                raise DivergedError(
                    f"The loss is {loss.item()} at step {step}: training has diverged.",
                    got=f"batch of {shown}",
                    remedy="a lower optimizer.lr and optimizer.muon_lr, a longer schedule.warmup, or --set optimizer.clip_norm=1",
                )

    def summary(self) -> dict[str, float]:
        return {
            "loss": torch.stack(self.losses).mean().item(),
            "accuracy": int(torch.stack(self.right).sum()) / max(self.num_images, 1),
            "lr": self.rate,
            "images_per_second": round(self.num_images / max(self.age(), 1e-9), 1),
        }


@contextlib.contextmanager
def _finish_step_on_interrupt(loop: Loop) -> Iterator[None]:
    """Let the first Ctrl-C (or SIGTERM) end the run after the present step; a second one ends it at once."""

    def request_stop(number: int, frame: FrameType | None) -> None:
        if loop._stop_requested:
            raise KeyboardInterrupt
        loop._stop_requested = True
        loop.reporter.say("Finishing this step and saving; press Ctrl-C again to stop at once.")

    try:
        before = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals belong to somebody else
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def seconds_per_image(model: nn.Module, loader: Iterable[Batch], dtype: torch.dtype | None, max_batches: int = 4) -> float:
    """Measure how long evaluation takes on up to `max_batches` batches, the first left out where there are others."""
    times: list[tuple[float, int]] = []
    model.eval()
    with torch.inference_mode():
        started = time.monotonic()
        for batch in loader:
            with torch.autocast(batch.images.device.type, dtype=dtype, enabled=dtype is not None):
                model(batch.images).sum().item()
            times.append((time.monotonic() - started, len(batch.labels)))
            started = time.monotonic()
            if len(times) == max_batches:
                break
    model.train()
    times = times[1:] or times
    return sum(seconds for seconds, _ in times) / sum(count for _, count in times)
