"""From a plan to what the loop works on: images read, model built, batches ready."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from kawara.analysis.cost import count_macs, count_parameters
from kawara.analysis.features import extract
from kawara.config import to_dict
from kawara.data.augment import Augmentation
from kawara.data.gate import Gate, inspect_data
from kawara.data.loading import EvalLoader, TrainLoader
from kawara.data.sources import ImageData, ImageSplit, load_data
from kawara.errors import ConfigError, DataError
from kawara.models import ImageModel
from kawara.runtime import autocast_dtype, environment
from kawara.tasks.classification import Classification
from kawara.tasks.distillation import Distillation, Teacher
from kawara.training.distributed import ALONE, World
from kawara.training.frozen import FeatureLoader, Heads
from kawara.training.precision import training_dtype
from kawara.training.progress import Reporter
from kawara.training.run_config import RunConfig
from kawara.training.run_folder import RunFolder
from kawara.verbs import planning
from kawara.verbs.checking import announce_findings, stop_at_findings
from kawara.verbs.evaluation import EVALUATION_BATCH, training_sample
from kawara.verbs.planning import CheckMode, Plan, starting_model
from kawara.weights import ModelCard

MAX_SKIPPED_SHOWN = 10


@dataclass(frozen=True)
class Run:
    """Everything that training and what follows it work on."""

    plan: Plan
    folder: RunFolder
    images: ImageData
    model: ImageModel
    card: ModelCard
    reporter: Reporter
    world: World = ALONE
    gate: Gate | None = None

    @property
    def config(self) -> RunConfig:
        return self.plan.config

    @property
    def device(self) -> torch.device:
        return self.plan.device

    @property
    def train(self) -> ImageSplit:
        return self.images.splits["train"]

    @property
    def validation(self) -> ImageSplit:
        return self.images.splits["val"]

    @property
    def reported(self) -> ImageSplit:
        return self.images.splits[self.images.reported]


@dataclass(frozen=True)
class Work:
    """What the loop trains towards what, and where its batches come from: images, or features where the backbone is frozen."""

    model: torch.nn.Module
    task: Classification | Distillation
    train: TrainLoader | FeatureLoader
    evaluation: Mapping[str, EvalLoader | FeatureLoader]
    """For validation and for the reported split, by name."""


def prepare(plan: Plan, folder: RunFolder, reporter: Reporter, world: World = ALONE, check: CheckMode = "on") -> Run:
    """Read the images, say what is wrong with them, settle the normalisation from the training part, and build the model."""
    data = plan.config.data
    preprocessing = planning.preprocessing(plan)
    images = load_data(
        plan.listing, preprocessing, seed=data.split_seed, val_fraction=data.val_fraction, progress=reporter.progress_of("reading images")
    )
    for file in images.skipped[:MAX_SKIPPED_SHOWN]:
        reporter.say(f"left out: {file.path}: {file.reason}")
    if len(images.skipped) > MAX_SKIPPED_SHOWN:
        reporter.say(f"… and {len(images.skipped) - MAX_SKIPPED_SHOWN} more files left out; the report lists them")
    gate = None if check == "off" else inspect_data(images)
    if gate is not None:
        announce_findings(gate, reporter)
        if check == "strict":
            stop_at_findings(gate, plan.listing.spec)
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in images.splits.items())
    reporter.say(f"{images.description} ({sizes}); {images.storage}")
    if "train" not in images.splits:
        raise DataError(
            f"{plan.listing.spec} has no training images.",
            got=f"only {', '.join(images.splits)}",
            remedy="a folder with train/, or just one folder for each class",
        )
    train = images.splits["train"]
    if len(images.class_names) > len(train):
        raise DataError(
            "There are more classes than training images.",
            got=f"{len(images.class_names)} classes, {len(train)} images",
            remedy="one sub-folder for each class, several images in each",
        )
    if plan.start is None:
        mean, std = _color_statistics(train, preprocessing.channels)
        preprocessing = dataclasses.replace(preprocessing, mean=mean, std=std)
    model = starting_model(plan, len(images.class_names))
    if not world.is_sharded:  # else it may not fit, and is moved block by block
        model = model.to(plan.device)
    card = ModelCard(
        name=plan.config.model.name,
        config=model.config,
        class_names=images.class_names,
        preprocessing=preprocessing,
        recipe=to_dict(plan.config),
        data={
            "description": images.description,
            "fingerprint": images.fingerprint,
            "splits": {name: len(split) for name, split in images.splits.items()},
            "skipped": len(images.skipped),
            "training_sample": training_sample(train),
        },
        environment=environment(),
    )
    return Run(plan, folder, images, model, card, reporter, world, gate)


def announce(run: Run) -> None:
    """Say what is about to be trained."""
    height, width = run.card.preprocessing.image_size
    where = f"{run.device}" + (f", {torch.get_num_threads()} threads" if run.device.type == "cpu" else "")
    dtype = None if run.config.model.frozen_backbone else training_dtype(run.config.precision, run.device, run.model)
    where += "" if dtype is None else f", {str(dtype).removeprefix('torch.')}"
    where += f" in each of {run.world.size} processes" if run.world.size > 1 else ""
    run.reporter.say(
        f"{run.card.name}: {count_parameters(run.model):,} parameters, {count_macs(run.model) / 1e6:,.0f} million MACs an image of "
        f"{height}×{width}; recipe {run.config.recipe}, {run.config.length}, batch {run.config.batch_size}; {where}; in {run.folder.path}"
    )


def _color_statistics(split: ImageSplit, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over up to 1,000 training images, rounded to three digits."""
    indices = np.unique(np.linspace(0, len(split) - 1, min(1000, len(split))).astype(int))
    moments = np.zeros((2, channels))
    for index in indices:
        image_01 = split.store[int(index)].reshape(-1, channels) / 255.0
        moments += image_01.mean(axis=0), (image_01**2).mean(axis=0)
    mean, square = moments / len(indices)
    std = np.sqrt(np.maximum(square - mean**2, 1e-4))
    return tuple(round(float(value), 3) for value in mean), tuple(round(float(value), 3) for value in std)


def teacher_of(run: Run) -> Teacher | None:
    """Return the run's teacher, able to look at the student's input."""
    if run.plan.teacher is None:
        return None
    model, card = run.plan.teacher.model, run.plan.teacher.card
    return Teacher(
        model, card.preprocessing, card.class_names,
        student=run.card.preprocessing, student_classes=run.card.class_names, device=run.device,
    )  # fmt: skip


def gather(run: Run) -> Work:
    """Make the batches of training, validation and evaluation ready; with a frozen backbone its features are computed here."""
    config, preprocessing, share = run.config, run.card.preprocessing, run.world.share
    splits = {split.name: split for split in (run.validation, run.reported)}
    loaders = {
        name: EvalLoader(split, preprocessing, batch_size=EVALUATION_BATCH, workers=config.workers, device=run.device, share=share)
        for name, split in splits.items()
    }
    if config.model.frozen_backbone:
        return _gather_features(run, loaders)
    train = TrainLoader(
        run.train,
        Augmentation(config.augment, preprocessing, config.seed),
        batch_size=config.batch_size,
        seed=config.seed,
        sampler=config.sampler,
        workers=config.workers,
        device=run.device,
        share=share,
    )
    run.world.share_model(run.model, train.whole_batch)
    teacher, num_classes = teacher_of(run), len(run.images.class_names)
    if teacher is None:
        return Work(run.model, Classification(config.task, num_classes, config.seed), train, loaders)
    return Work(run.model, Distillation(config.task, config.distillation, teacher, num_classes, config.seed), train, loaders)


def _gather_features(run: Run, loaders: Mapping[str, EvalLoader]) -> Work:
    """Send every image through the frozen backbone once, and go on with what comes out."""
    config = run.config
    if run.world.size > 1:
        raise ConfigError(
            "The features of a frozen backbone are computed once, and its head is trained by one process.", remedy="without --devices"
        )
    dtype = autocast_dtype(config.precision, run.device)
    train = EvalLoader(run.train, run.card.preprocessing, batch_size=EVALUATION_BATCH, workers=config.workers, device=run.device)
    total = sum(len(loader.split) for loader in (train, *loaders.values()))
    done = 0

    def features(loader: EvalLoader) -> torch.Tensor:
        nonlocal done
        before, report = done, run.reporter.progress_of("computing features")
        found = extract(
            run.model, loader, dtype, progress=lambda count, *_: report(before + count, total, f"{before + count:,} of {total:,} images")
        )
        done += len(loader.split)
        return found.by_head.to(run.device)

    training = FeatureLoader(features(train), run.train.labels, batch_size=config.batch_size, seed=config.seed, sampler=config.sampler)
    evaluation = {
        name: FeatureLoader(features(loader), loader.split.labels, batch_size=EVALUATION_BATCH) for name, loader in loaders.items()
    }
    return Work(Heads(run.model), Classification(config.task, len(run.images.class_names), config.seed), training, evaluation)
