"""`kawara train`: a data set in, a trained model with its proof out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kawara.errors import ConfigError
from kawara.files import write_json
from kawara.runtime import autocast_dtype, keep_large_buffers, seed_everything, threads
from kawara.tasks.classification import classify
from kawara.tasks.distillation import Distillation, agreement
from kawara.tasks.metrics import classification_metrics
from kawara.training.checkpoint import read_weights
from kawara.training.loop import FitResult, Loop, Observer, seconds_per_image
from kawara.training.progress import Reporter
from kawara.training.run_config import RunConfig
from kawara.training.run_folder import RunFolder
from kawara.verbs import continuing
from kawara.verbs.evaluation import Evaluation, judge
from kawara.verbs.planning import Plan, TrainRequest, make_plan
from kawara.verbs.preparing import Run, Work, announce, gather, prepare
from kawara.verbs.run_report import write_report
from kawara.verbs.watching import Doctor
from kawara.weights import save_model

REPORT_SECONDS = 4.0


@dataclass(frozen=True)
class TrainResult:
    """What a run gave. `split` names the images that `metrics` were measured on."""

    folder: Path
    model_path: Path
    model: str
    recipe: str
    metrics: dict[str, Any]
    split: str
    steps: int
    epochs: float
    seconds: float
    images_per_second: float
    peak_memory_bytes: int
    skipped: int
    interrupted: bool

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `top1` and the other metrics are fractions."""
        values: dict[str, Any] = dataclasses.asdict(self)
        metrics = values.pop("metrics")
        return values | {"folder": str(self.folder), "model_path": str(self.model_path)} | metrics


def train(
    data: str | Path,
    *,
    model: str | None = None,
    pretrained: str | Path | None = None,
    freeze: str | int | None = None,
    teacher: str | Path | None = None,
    distill: str | None = None,
    recipe: str | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    image_size: int | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    device: str | None = None,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train a model on a data set; the same as the command `kawara train`.

    Args:
        data: folder, zip, idx folder, npz, CSV/JSONL manifest, "digits" or "hf:name".
        model, recipe: names; chosen from the images if not given.
        pretrained: a checkpoint to begin with: a file or folder of kawara, timm, Hugging Face …, or "hub:owner/name".
        freeze: what of it stays as it is: "none", "backbone" (all but the head), or the number of blocks from the input.
        teacher: a finished model of the same classes to learn from besides the labels.
        distill: how: "hard" (its decision; the default), "soft" (its probabilities) or "token" (through a distillation token).
        epochs, steps, minutes: at most one of them.
        settings: {"optimizer.lr": 1e-3, …}.

    Raises:
        UserError: with what is wrong and how to mend it.
    """
    lengths = {unit: amount for unit, amount in (("epochs", epochs), ("steps", steps), ("minutes", minutes)) if amount is not None}
    if len(lengths) > 1:
        raise ConfigError("A run has one length.", got=", ".join(lengths), allowed="epochs, steps or minutes")
    request = TrainRequest(
        data=str(data),
        model=model,
        pretrained=None if pretrained is None else str(pretrained),
        freeze=None if freeze is None else str(freeze),
        teacher=None if teacher is None else str(teacher),
        distill=distill,
        recipe=recipe,
        length=next((f"{amount:.15g} {unit}" for unit, amount in lengths.items()), None),
        image_size=image_size,
        out=None if out is None else str(out),
        seed=seed,
        resume=resume,
        device=device,
        config=None if config is None else str(config),
        settings=dict(settings or {}),
    )
    with Reporter(quiet=quiet) as reporter:
        return run_training(request, reporter)


def resolve(request: TrainRequest, reporter: Reporter) -> RunConfig:
    """Return the complete configuration that a request leads to."""
    return make_plan(request, reporter, None).config


def run_training(request: TrainRequest, reporter: Reporter, *, started_at: float | None = None) -> TrainResult:
    """Do everything that `kawara train` does: begin a run, or go on with the unfinished one in the same folder."""
    started_at = time.monotonic() if started_at is None else started_at
    keep_large_buffers()
    folder = continuing.find(request)
    try:
        goes_on = folder is not None and folder.state == "unfinished"
        plan = make_plan(request, reporter, folder if goes_on else None)
        with continuing.claimed(folder, request) as folder:
            if request.resume and not goes_on:
                reporter.say(f"There is no run to go on with yet: one begins in {folder.path}.")
            return _run(request, plan, folder, goes_on, reporter, started_at)
    except KeyboardInterrupt:
        reporter.say(continuing.how_to_go_on(request, folder))
        raise


def _run(request: TrainRequest, plan: Plan, folder: RunFolder, goes_on: bool, reporter: Reporter, started_at: float) -> TrainResult:
    inputs = continuing.digests(plan)
    seed_everything(plan.config.seed)
    run = prepare(plan, folder, reporter)
    if goes_on:
        continuing.check_inputs(folder, inputs, run.images)
    elif request.out is None:
        continuing.mention_unfinished(folder, plan, run.images, request, reporter)
    _check_time_left(plan.config, time.monotonic() - started_at)
    with threads(plan.config.threads):
        announce(run)
        work = gather(run)
        doctor = Doctor(run, work, request)
        loop = _loop(run, work, started_at, doctor)
        if goes_on:
            loop.resume()
            reporter.say(f"going on with the unfinished run in {folder.path} at step {loop.progress.step}")
        else:  # only now: a mistake found above leaves nothing on the disk
            continuing.begin(folder, plan, inputs, run.images, request.data)
            doctor.before()
        with doctor.explaining(loop):
            fitted = loop.fit(reserve_seconds=_reserve(run, work))
        if fitted.interrupted:
            reporter.say(continuing.stopped(request, folder, fitted.steps))
            return _result(run, fitted, None)
        return _finish(run, work, loop, fitted)


def _check_time_left(config: RunConfig, seconds: float) -> None:
    length = config.parsed_length
    if length.unit == "minutes" and seconds > 0.6 * 60 * length.amount:
        raise ConfigError(
            f"Reading the images took {seconds:.0f} s: {length} leave no time to train.",
            remedy=f"--minutes {max(1, round(seconds / 10))}, or the same command again where the images are kept decoded by now",
        )


def _loop(run: Run, work: Work, started_at: float, observer: Observer) -> Loop:
    config = run.config

    def validate(candidate: torch.nn.Module) -> dict[str, float]:
        answers = classify(candidate, work.evaluation[run.validation.name], autocast_dtype(config.precision, run.device))
        metrics = classification_metrics(*answers, resamples=1)
        return {name: metrics[name] for name in ("top1", "nll", "balanced_accuracy")}

    return Loop(
        work.model, work.task, work.train, validate, config, run.folder,
        device=run.device, reporter=run.reporter, started_at=started_at, keys=run.train.keys,
        observer=observer,
    )  # fmt: skip


def _reserve(run: Run, work: Work) -> float:
    """Estimate the seconds that the last validation, the evaluation and the report will take."""
    if run.config.parsed_length.unit != "minutes":
        return 0.0
    loader = work.evaluation[run.reported.name]
    each = seconds_per_image(work.model, loader, autocast_dtype(run.config.precision, run.device))
    return each * (len(run.validation) + len(run.reported)) + REPORT_SECONDS


def _finish(run: Run, work: Work, loop: Loop, fitted: FitResult) -> TrainResult:
    """Measure the trained model on the reported part and write model file, metrics and report."""
    has_test = run.reported is not run.validation
    work.model.load_state_dict(_weights_to_keep(run.folder, fitted, has_test))
    answers = classify(work.model, work.evaluation[run.reported.name], autocast_dtype("auto", run.device))
    evaluation = judge(*answers, run.card, split=run.reported.name, skipped=run.images.skipped)
    if isinstance(work.task, Distillation):
        evaluation.metrics["agreement"] = agreement(
            run.model, work.task.teacher, work.evaluation[run.reported.name], autocast_dtype("auto", run.device)
        )
    card = dataclasses.replace(run.card, metrics=evaluation.metrics | {"split": run.reported.name})
    save_model(run.folder.model, run.model.state_dict(), card)
    result = _result(run, fitted, evaluation)
    write_report(run.folder, card, run.model, run.images, evaluation, result.to_dict() | {"reason": run.plan.reason})
    result = dataclasses.replace(result, seconds=round(loop.clock.seconds, 2))
    run.folder.journal.write("finished", fitted.steps, seconds=result.seconds, split=evaluation.split, top1=evaluation.metrics["top1"])
    write_json(run.folder.metrics, result.to_dict() | {"confusion": evaluation.confusion.tolist(), "per_class": evaluation.per_class})
    return result


def _weights_to_keep(folder: RunFolder, fitted: FitResult, has_test: bool) -> dict[str, torch.Tensor]:
    """Return the weights that did best on validation; the last ones where validation is what will be reported.

    To choose on the images that are reported would make the report too good.
    """
    return read_weights(folder.best) if has_test else fitted.state


def _result(run: Run, fitted: FitResult, evaluation: Evaluation | None) -> TrainResult:
    return TrainResult(
        folder=run.folder.path,
        model_path=run.folder.model,
        model=run.card.name,
        recipe=run.config.recipe,
        metrics=evaluation.metrics if evaluation else {},
        split=evaluation.split if evaluation else "none",
        steps=fitted.steps,
        epochs=round(fitted.epochs, 3),
        seconds=round(fitted.seconds, 2),
        images_per_second=round(fitted.images_per_second, 1),
        peak_memory_bytes=fitted.peak_memory_bytes,
        skipped=len(run.images.skipped),
        interrupted=fitted.interrupted,
    )
