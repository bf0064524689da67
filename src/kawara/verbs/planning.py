"""From what a person asks to a complete configuration: recipe ← config file ← options ← --set; the rest is chosen from the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from kawara import models
from kawara.config import from_dict, override, read_file, to_dict
from kawara.data.augment import AugmentConfig
from kawara.data.listing import Listing
from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import open_data
from kawara.data.survey import Survey, survey
from kawara.errors import ConfigError, RunFolderError
from kawara.models import ImageModel
from kawara.recipes import RECIPES, choice
from kawara.runtime import choose_device, num_threads_that_pay, threads
from kawara.tasks.distillation import check_classes
from kawara.training.optimizer import refuse_foreign
from kawara.training.progress import Reporter
from kawara.training.run_config import RunConfig
from kawara.training.run_folder import RunFolder, next_free
from kawara.training.schedule import Duration
from kawara.weights import ModelCard, open_model

WITHOUT_EFFECT = ("workers", "doctor")
"""Settings that change nothing of what comes out; `doctor` decides only whether a run goes on."""
MAX_DIFFERENCES_SHOWN = 4
CheckMode = Literal["on", "strict", "off"]
"""Before training: say what is wrong with the data; stop where there is an error or a warning; or say nothing."""


@dataclass(frozen=True)
class TrainRequest:
    """What a person asks of `kawara train`; everything but `data` may be left out."""

    data: str
    model: str | None = None
    pretrained: str | None = None
    freeze: str | None = None
    teacher: str | None = None
    distill: str | None = None
    recipe: str | None = None
    length: str | None = None
    image_size: int | None = None
    out: str | None = None
    seed: int | None = None
    resume: bool = False
    replace: bool = False
    check: CheckMode = "on"
    device: str | None = None
    config: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A finished model that takes part in a run: the one it begins with, or a teacher."""

    model: ImageModel
    card: ModelCard


@dataclass(frozen=True)
class Plan:
    """Everything that is settled before an image is decoded. `start` is None for a model from scratch, `teacher` without one.

    `asked` are the settings that somebody asked for, by dotted path; those of a new run alone.
    """

    config: RunConfig
    listing: Listing
    device: torch.device
    reason: str
    start: Trained | None
    teacher: Trained | None
    asked: Mapping[str, Any] = field(default_factory=dict)


def make_plan(request: TrainRequest, reporter: Reporter, begun: RunFolder | None, settled: RunConfig | None = None) -> Plan:
    """Settle the configuration of a new run, or take up that of `begun`, or the one that another process has `settled`.

    Raises RunFolderError where other settings than those of `begun` are asked for. With `--resume` only what is spelled out has to fit.
    """
    device = choose_device(request.device)
    asked = _asked(request)
    earlier = None if begun is None else read_config(begun)
    if settled is not None:
        config, reason = settled, "as the first process chose"
        start, teacher = _open(config.model.pretrained, reporter), _open(config.distillation.teacher, reporter)
        listing = _open_data(request, reporter)
    elif earlier is not None and request.resume:
        config = earlier
        if "doctor" in asked:
            config = override(config, {"doctor": asked["doctor"]})
        _check_unchanged(config, asked | ({"recipe": request.recipe} if request.recipe else {}))
        start, teacher = _open(config.model.pretrained, reporter), _open(config.distillation.teacher, reporter)
        listing = _open_data(request, reporter)
        reason = "as when the run began"
    else:
        start, teacher = (_open(str(asked.get(path, "")), reporter) for path in ("model.pretrained", "distillation.teacher"))
        listing = _open_data(request, reporter)
        config, reason = _fill_in(request, asked, survey(listing), device, start, reporter, earlier)
        if begun is not None and earlier is not None:
            refuse_other_settings(begun, earlier, config)
        reporter.say(f"{config.model.name}, recipe {config.recipe}: {reason}.")
    plan = Plan(config, listing, device, reason, start, teacher, {} if begun is not None else asked)
    if teacher is not None:
        check_classes(teacher.card.class_names, tuple(listing.class_names))
    model_config(plan, len(listing.class_names))  # what does not fit together is said before images are read
    return plan


def read_config(folder: RunFolder) -> RunConfig:
    """Return the configuration that a run began with. Raises ConfigError if it is damaged."""
    return from_dict(RunConfig, read_file(folder.config), where=str(folder.config))


def refuse_other_settings(folder: RunFolder, earlier: RunConfig, asked: RunConfig, remedy: str | None = None) -> None:
    """Raise RunFolderError, naming the first differences, where the run in `folder` began with other settings than `asked`."""
    there, here = flat_settings(to_dict(earlier)), flat_settings(to_dict(asked))
    differing = [path for path in here if there.get(path) != here[path] and path not in WITHOUT_EFFECT]
    if differing:
        shown = [f"{path} {there.get(path)!r} there, {here[path]!r} asked for" for path in differing[:MAX_DIFFERENCES_SHOWN]]
        more = f"; and {len(differing) - len(shown)} more" if len(differing) > len(shown) else ""
        raise RunFolderError(
            f"The run in {folder.path} began with other settings.",
            got="; ".join(shown) + more,
            remedy=remedy
            or f"the settings of the first time, --resume to go on with those, or another --out, such as {next_free(folder.path)}",
        )


def _beside_other_programs(config: RunConfig, earlier: RunConfig | None, reporter: Reporter) -> RunConfig:
    """Say where other programs hold the threads up; take fewer for a length in minutes, which promises no bits that depend on them."""
    in_minutes = config.parsed_length.unit == "minutes"
    if earlier is not None:
        return override(config, {"threads": earlier.threads}) if in_minutes else config
    count, most = num_threads_that_pay(), torch.get_num_threads()
    if count == most:
        return config
    busy = f"Other programs keep this machine busy: {_in_words(count)} now faster than {most}"
    if in_minutes:
        reporter.say(f"{busy}; the run takes no more (--set threads={most} takes all).")
        return override(config, {"threads": count})
    reporter.say(f"{busy}. Wait for them to end, or --set threads={count}.")
    return config


def _in_words(num_threads: int) -> str:
    return "one thread is" if num_threads == 1 else f"{num_threads} threads are"


def _open(pretrained: str, reporter: Reporter) -> Trained | None:
    if not pretrained:
        return None
    model, card, foreign = open_model(pretrained)
    for note in foreign.notes if foreign else ():
        reporter.say(note)
    return Trained(model, card)


def _open_data(request: TrainRequest, reporter: Reporter) -> Listing:
    listing = open_data(request.data)
    for note in listing.notes:
        reporter.say(note)
    return listing


def model_config(plan: Plan, num_classes: int) -> Any:
    """Return the configuration of the run's model."""
    settings = plan.config.model
    rates = {"stochastic_depth": settings.stochastic_depth, "dropout": settings.dropout}
    if plan.config.distillation.kind == "token":
        rates |= _distillation_token(plan)
    if plan.start is not None:
        image_size = preprocessing(plan).image_size
        return dataclasses.replace(plan.start.model.config, num_classes=num_classes, image_size=image_size, **rates)
    side, channels = plan.config.data.image_size, 1 if plan.config.data.color == "grey" else 3
    return models.model_config(
        settings.name, num_classes=num_classes, image_size=(side, side), channels=channels, **rates | settings.options
    )


def _distillation_token(plan: Plan) -> dict[str, bool]:
    """Return the model options that learning through a token needs. Raises ConfigError for a family without tokens."""
    known = plan.start.model.config if plan.start else models.MODELS[plan.config.model.name].config
    if not hasattr(known, "distillation_token"):
        raise ConfigError(
            f"{plan.config.model.name} has no tokens to distil through.", got="--distill token", remedy="--distill hard or --distill soft"
        )
    return {"distillation_token": True}


def preprocessing(plan: Plan) -> Preprocessing:
    """Return how images become the model's input: that of the checkpoint, where there is one, but for size and margin.

    From scratch the normalisation is still to be measured on the training images; ½ stands in for it.
    """
    data = plan.config.data
    size = (data.image_size, data.image_size)
    if plan.start is not None:
        taken = plan.start.card.preprocessing
        return dataclasses.replace(
            taken, image_size=size if data.image_size else taken.image_size, crop_fraction=data.crop_fraction or taken.crop_fraction
        )
    half = (0.5,) * (1 if data.color == "grey" else 3)
    return Preprocessing(size, "grey" if data.color == "grey" else "rgb", crop_fraction=data.crop_fraction, mean=half, std=half)


def starting_model(plan: Plan, num_classes: int) -> ImageModel:
    """Build the model that training begins with: fresh, or the checkpoint with a new head, at the size of the run, frozen as asked."""
    config = model_config(plan, num_classes)
    model = models.build(config)
    if plan.start is not None:
        source = plan.start.model
        source.reset_head(num_classes)
        source.set_image_size(config.image_size)
        if plan.config.distillation.kind == "token":
            source.add_distillation_token()  # type: ignore[operator]
        model.load_state_dict(source.state_dict())
    freeze = plan.config.model.freeze
    if freeze != "none":
        model.freeze(None if freeze == "backbone" else int(freeze) + 1)
    return model


def _asked(request: TrainRequest) -> dict[str, Any]:
    """Return every setting that was asked for, by dotted path; `recipe` apart."""
    asked = flat_settings(read_file(request.config)) if request.config else {}
    asked.pop("recipe", None)
    options = {
        "length": request.length,
        "seed": request.seed,
        "model.name": request.model,
        "model.pretrained": request.pretrained,
        "model.freeze": request.freeze,
        "distillation.teacher": request.teacher,
        "distillation.kind": request.distill or ("hard" if request.teacher else None),
        "data.image_size": request.image_size,
    }
    asked |= {path: value for path, value in options.items() if value is not None}
    if "recipe" in request.settings:
        raise ConfigError(
            "A recipe is chosen with --recipe; --set changes one of its settings.", remedy=f"--recipe {request.settings['recipe']}"
        )
    return asked | dict(request.settings)


def _fill_in(
    request: TrainRequest,
    asked: dict[str, Any],
    found: Survey,
    device: torch.device,
    start: Trained | None,
    reporter: Reporter,
    earlier: RunConfig | None = None,
) -> tuple[RunConfig, str]:
    """Return the configuration with everything that nobody asked for chosen, and the reason in words.

    What was chosen by measuring the machine, model and threads, stays that of `earlier`: measured again, it might be another.
    """
    in_file = read_file(request.config).get("recipe") if request.config else None
    usual = "small" if start is None else "head" if asked.get("model.freeze") == "backbone" else "finetune"
    recipe = request.recipe or in_file or usual
    config = override(RunConfig() if recipe == "custom" else RECIPES[recipe](), asked)
    if device.type == "cpu" and not config.threads:
        config = _beside_other_programs(config, earlier, reporter)
    chosen: dict[str, Any] = {}
    reasons = [f"{found.num_images:,} images of {found.num_classes} classes"]
    if start is not None:
        chosen |= _taken_over(config, asked, start)
        reasons.append(_describe(start))
        if recipe == "finetune" and "length" not in asked:
            chosen["length"] = choice.finetuning_length(found, device)
    else:
        if recipe in ("finetune", "head"):
            raise ConfigError(f"The recipe {recipe} begins with a pretrained model.", remedy="--pretrained FILE or hub:owner/name")
        image_size, why = _image_size(config, found, device, chosen, enlarge=recipe == "small" and "model.name" not in asked)
        reasons += why
        if recipe == "small":  # the one recipe that fits itself to the data; the others are what their papers say
            if "length" not in asked:
                chosen["length"] = choice.length(found, device)
            if "model.name" not in asked:
                length = Duration.parse(chosen.get("length", config.length))
                if earlier is not None and length.unit == "minutes":
                    chosen["model.name"], why = earlier.model.name, "the model chosen when the run began"
                else:
                    with threads(config.threads):
                        chosen["model.name"], why = choice.model(found, image_size, length, device, config.batch_size)
                reasons.append(why)
            jitter = {path: amount for path, amount in choice.jitter(found, image_size).items() if path not in asked}
            if jitter:
                chosen |= jitter
                reasons.append("turned a little at random, and shifted by parts of a pixel")
        if config.data.color == "auto":
            chosen["data.color"] = "grey" if found.is_grey else "rgb"
        if not config.data.crop_fraction:  # small images are used whole; photos keep a margin, as is usual
            chosen["data.crop_fraction"] = 1.0 if image_size <= choice.LARGEST_SMALL_PX else 0.875
        if recipe == "deit" and image_size <= 32 and "augment.crop" not in asked:
            chosen |= {"augment.crop": "pad", "augment.pad_px": 4}  # as the authors' code does for small images
    if recipe in ("small", "finetune") and found.is_grey and "augment.flip" not in asked:
        chosen["augment.flip"] = 0.0
        reasons.append("no mirror images, because grey images are often characters (--set augment.flip=0.5 allows them)")
    if not config.data.val_fraction:
        chosen["data.val_fraction"] = choice.val_fraction(found)
    config = override(config, chosen)
    refuse_foreign((path.removeprefix("optimizer.") for path in request.settings if path.startswith("optimizer.")), config.optimizer)
    _check_frozen(config)
    return config, "; ".join(reasons)


def _image_size(config: RunConfig, found: Survey, device: torch.device, chosen: dict[str, Any], *, enlarge: bool) -> tuple[int, list[str]]:
    if config.data.image_size:
        return config.data.image_size, []
    chosen["data.image_size"], why = choice.image_size(found, device, enlarge=enlarge)
    return chosen["data.image_size"], [why]


def _taken_over(config: RunConfig, asked: Mapping[str, Any], start: Trained) -> dict[str, Any]:
    """Return the settings that come with the checkpoint. Raises ConfigError where others were asked for."""
    if asked.get("model.name", start.card.name) != start.card.name:
        raise ConfigError(
            "A pretrained model has its architecture.",
            got=f"--model {asked['model.name']}",
            remedy=f"leave it out: it is {start.card.name}",
        )
    taken = start.card.preprocessing
    if config.data.color not in ("auto", taken.color):
        raise ConfigError("The pretrained model sees other colours.", got=f"data.color {config.data.color}", allowed=taken.color)
    height, width = taken.image_size
    return {
        "model.name": start.card.name,
        "data.color": taken.color,
        "data.crop_fraction": config.data.crop_fraction or taken.crop_fraction,
        "data.image_size": config.data.image_size or (height if height == width else 0),
    }


def _describe(start: Trained) -> str:
    taken = start.card.preprocessing
    height, width = taken.image_size
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (taken.mean, taken.std))
    return f"begins with a model pretrained at {height}×{width} px; its colours are taken over (mean {mean}; std {std})"


def _check_frozen(config: RunConfig) -> None:
    """Raise ConfigError for settings that a backbone that answers once cannot follow."""
    if not config.model.frozen_backbone:
        return
    still = AugmentConfig(crop="none", flip=0.0)
    without_effect = [
        name
        for name, acts in (
            ("augment", config.augment != still),
            ("task.mix", bool(config.task.mix.mixup or config.task.mix.cutmix)),
            ("optimizer.layer_decay", config.optimizer.layer_decay != 1.0),
            ("model.stochastic_depth", config.model.stochastic_depth > 0),
            ("model.dropout", config.model.dropout > 0),
            ("distillation", config.distillation.kind != "none"),
        )
        if acts
    ]
    if without_effect:
        raise ConfigError(
            "With a frozen backbone every image is seen once, as it is: these settings would have no effect.",
            got=", ".join(without_effect),
            remedy="--recipe head, or --freeze N to hold only the first N blocks",
        )


def _check_unchanged(config: RunConfig, asked: Mapping[str, Any]) -> None:
    """Raise ConfigError where a resumed run is asked for other settings than it began with."""
    for path, value in asked.items():
        if override(config, {path: value}) != config:
            raise ConfigError(
                f"A resumed run keeps its settings; {path} cannot become {value!r}.",
                remedy="leave the option out, or start a new run with another --out",
            )


def flat_settings(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested tables as dotted paths; tables whose names are free (model.options) stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        full = f"{path}.{name}" if path else name
        flat |= flat_settings(value, full) if isinstance(value, dict) and full != "model.options" else {full: value}
    return flat
