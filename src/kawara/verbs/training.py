"""`kawara train`: a data set in, a trained model with its proof out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kawara import models
from kawara.config import from_dict, to_dict
from kawara.data.loading import EvalLoader
from kawara.errors import ConfigError
from kawara.files import write_json
from kawara.runtime import autocast_dtype, keep_large_buffers, seed_everything, threads
from kawara.tasks.distillation import Distillation, agreement
from kawara.tasks.metrics import classification_metrics
from kawara.training.checkpoint import read_weights
from kawara.training.distributed import ALONE, World, joined, sharded
from kawara.training.loop import FitResult, Loop, Observer, seconds_per_image
from kawara.training.progress import Reporter
from kawara.training.run_config import RunConfig
from kawara.training.run_folder import RunFolder
from kawara.verbs import continuing
from kawara.verbs.checking import write_gate
from kawara.verbs.evaluation import EVALUATION_BATCH, Evaluation, judge
from kawara.verbs.planning import CheckMode, Plan, TrainRequest, make_plan
from kawara.verbs.preparing import Run, Work, announce, gather, prepare
from kawara.verbs.run_report import write_report
from kawara.verbs.watching import Doctor
from kawara.weights import save_model

REPORT_SECONDS = 4.0


@dataclass(frozen=True)
class TrainResult:
    """What a run gave. `split` names the images that `metrics` were measured on; of `num_files` files `skipped` were not used."""

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
    num_files: int
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
    check: CheckMode = "on",
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
        check: what is wrong with the data is said ("on"), stops the training ("strict"), or is not looked for ("off").

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
        check=check,
    )
    with joined(device) as world, Reporter(quiet=quiet or not world.is_first) as reporter:
        return run_training(request, reporter, world=world)


def resolve(request: TrainRequest, reporter: Reporter) -> RunConfig:
    """Return the complete configuration that a request leads to."""
    return make_plan(request, reporter, None).config


def run_training(request: TrainRequest, reporter: Reporter, *, started_at: float | None = None, world: World = ALONE) -> TrainResult:
    """Do everything that `kawara train` does: begin a run, or go on with the unfinished one in the same folder.

    In a `world` of several processes, this is one process's part of it.
    """
    started_at = time.monotonic() if started_at is None else started_at
    keep_large_buffers()
    if not world.is_first:
        return _follow(request, reporter, started_at, world)
    folder = continuing.find(request)
    try:
        goes_on = folder is not None and folder.state == "unfinished"
        plan = make_plan(request, reporter, folder if goes_on else None)
        with continuing.claimed(folder, request) as folder:
            if request.resume and not goes_on:
                reporter.say(f"There is no run to go on with yet: one begins in {folder.path}.")
            return _run(request, plan, folder, goes_on, reporter, started_at, world)
    except KeyboardInterrupt:
        reporter.say(continuing.how_to_go_on(request, folder))
        raise


def _follow(request: TrainRequest, reporter: Reporter, started_at: float, world: World) -> TrainResult:
    """Take part in the run that the first process has prepared: its plan is settled and its images are decoded."""
    told = json.loads(world.tell("run", None))
    plan = make_plan(request, reporter, None, from_dict(RunConfig, told["config"]))
    return _run(request, plan, RunFolder(told["folder"]), told["goes_on"], reporter, started_at, world)


def _run(
    request: TrainRequest, plan: Plan, folder: RunFolder, goes_on: bool, reporter: Reporter, started_at: float, world: World
) -> TrainResult:
    inputs = continuing.digests(plan)
    seed_everything(plan.config.seed)
    check: CheckMode = "off" if not world.is_first or (goes_on and request.check == "on") else request.check
    run = prepare(plan, folder, reporter, sharded(world, plan.config, plan.device), check)
    if world.is_first:
        if goes_on:
            continuing.check_inputs(folder, inputs, run.images)
        elif request.out is None:
            continuing.mention_unfinished(folder, plan, run.images, request, reporter)
        _check_time_left(plan.config, time.monotonic() - started_at)
        world.tell("run", json.dumps({"folder": str(folder.path), "config": to_dict(plan.config), "goes_on": goes_on}))
    with threads(plan.config.threads):
        announce(run)
        work = gather(run)
        doctor = Doctor(run, work, request)
        # One process looks on, which a divided model does not allow.
        loop = _loop(run, work, started_at, doctor if run.world.is_first and not run.world.is_sharded else None)
        if goes_on:
            loop.resume()
            reporter.say(f"going on with the unfinished run in {folder.path} at step {loop.progress.step}")
        elif world.is_first:  # only now: a mistake found above leaves nothing on the disk
            if run.gate is not None:
                write_gate(run.gate, folder.path)
            continuing.begin(folder, plan, inputs, run.images, request.data)
            doctor.before()
        with doctor.explaining(loop) if world.size == 1 else contextlib.nullcontext():
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


def _loop(run: Run, work: Work, started_at: float, observer: Observer | None) -> Loop:
    config = run.config

    def validate(candidate: torch.nn.Module) -> dict[str, float]:
        answers = run.world.classify(candidate, work.evaluation[run.validation.name], autocast_dtype(config.precision, run.device))
        metrics = classification_metrics(*answers, resamples=1)
        return {name: metrics[name] for name in ("top1", "nll", "balanced_accuracy")}

    return Loop(
        work.model, work.task, work.train, validate, config, run.folder,
        device=run.device, reporter=run.reporter, started_at=started_at, keys=run.train.keys, world=run.world, observer=observer,
    )  # fmt: skip


def _reserve(run: Run, work: Work) -> float:
    """Estimate the seconds that the last validation, the evaluation and the report will take."""
    if run.config.parsed_length.unit != "minutes":
        return 0.0
    loader = work.evaluation[run.reported.name]
    each = seconds_per_image(work.model, loader, autocast_dtype(run.config.precision, run.device))
    return each * (len(run.validation) + len(run.reported)) / run.world.size + REPORT_SECONDS


def _finish(run: Run, work: Work, loop: Loop, fitted: FitResult) -> TrainResult:
    """Measure the trained model on the reported part and write model file, metrics and report."""
    has_test = run.reported is not run.validation
    run.world.wait()  # until the first process has written them
    run.world.load_state(work.model, _weights_to_keep(run.folder, fitted, has_test))
    answers = run.world.classify(work.model, work.evaluation[run.reported.name], autocast_dtype("auto", run.device))
    state = run.world.whole_state(run.model)
    if not run.world.is_first:
        return _result(run, fitted, None)
    evaluation = judge(*answers, run.card, split=run.reported.name, skipped=run.images.skipped)
    if isinstance(work.task, Distillation):
        loader = EvalLoader(
            run.reported, run.card.preprocessing, batch_size=EVALUATION_BATCH, workers=run.config.workers, device=run.device
        )
        evaluation.metrics["agreement"] = agreement(run.model, work.task.teacher, loader, autocast_dtype("auto", run.device))
    card = dataclasses.replace(run.card, metrics=evaluation.metrics | {"split": run.reported.name})
    save_model(run.folder.model, state, card)
    result = _result(run, fitted, evaluation)
    with torch.device("meta"):  # to be counted: the trained one may be divided among processes
        counted = models.build(card.config)
    write_report(run.folder, card, counted, run.images, evaluation, result.to_dict() | {"reason": run.plan.reason})
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
        num_files=len(run.images.skipped) + sum(len(split) for split in run.images.splits.values()),
        interrupted=fitted.interrupted,
    )
