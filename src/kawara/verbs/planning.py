"""From what a person asks to a complete configuration: recipe ← config file ← options ← --set; the rest is chosen from the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kawara import models
from kawara.config import from_dict, override, read_file
from kawara.data.listing import Listing
from kawara.data.sources import open_data
from kawara.data.survey import Survey, survey
from kawara.errors import ConfigError
from kawara.recipes import RECIPES, choice
from kawara.runtime import choose_device
from kawara.training.progress import Reporter
from kawara.training.run_config import RunConfig
from kawara.training.run_folder import RunFolder
from kawara.training.schedule import Duration


@dataclass(frozen=True)
class TrainRequest:
    """What a person asks of `kawara train`; everything but `data` may be left out."""

    data: str
    model: str | None = None
    recipe: str | None = None
    length: str | None = None
    image_size: int | None = None
    out: str | None = None
    seed: int | None = None
    resume: bool = False
    replace: bool = False
    device: str | None = None
    config: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything that is settled before an image is decoded."""

    config: RunConfig
    listing: Listing
    device: torch.device
    reason: str


def make_plan(request: TrainRequest, reporter: Reporter, resumed: RunFolder | None) -> Plan:
    """Settle the configuration of a new run, or take up that of `resumed`."""
    device = choose_device(request.device)
    listing = open_data(request.data)
    for note in listing.notes:
        reporter.say(note)
    if resumed is not None:
        config = from_dict(RunConfig, read_file(resumed.config), where=str(resumed.config))
        _check_unchanged(config, _asked(request) | ({"recipe": request.recipe} if request.recipe else {}))
        reason = "as when the run began"
    else:
        config, reason = _fill_in(request, survey(listing), device)
        reporter.say(f"{config.model.name}, recipe {config.recipe}: {reason}.")
    model_config(config, len(listing.class_names))  # what does not fit together is said before images are read
    return Plan(config, listing, device, reason)


def model_config(config: RunConfig, num_classes: int) -> Any:
    """Return the configuration of the run's model."""
    settings, side = config.model, config.data.image_size
    options = {"stochastic_depth": settings.stochastic_depth, "dropout": settings.dropout} | settings.options
    channels = 1 if config.data.color == "grey" else 3
    return models.model_config(settings.name, num_classes=num_classes, image_size=(side, side), channels=channels, **options)


def _asked(request: TrainRequest) -> dict[str, Any]:
    """Return every setting that was asked for, by dotted path; `recipe` apart."""
    asked = _flat(read_file(request.config)) if request.config else {}
    asked.pop("recipe", None)
    options = {"length": request.length, "seed": request.seed, "model.name": request.model, "data.image_size": request.image_size}
    asked |= {path: value for path, value in options.items() if value is not None}
    if "recipe" in request.settings:
        raise ConfigError(
            "A recipe is chosen with --recipe; --set changes one of its settings.", remedy=f"--recipe {request.settings['recipe']}"
        )
    return asked | dict(request.settings)


def _fill_in(request: TrainRequest, found: Survey, device: torch.device) -> tuple[RunConfig, str]:
    """Return the configuration with everything that nobody asked for chosen, and the reason in words."""
    asked = _asked(request)
    in_file = read_file(request.config).get("recipe") if request.config else None
    recipe = request.recipe or in_file or "small"
    config = override(RunConfig() if recipe == "custom" else RECIPES[recipe](), asked)
    chosen: dict[str, Any] = {}
    reasons = [f"{found.num_images:,} images of {found.num_classes} classes"]
    if config.data.image_size:
        image_size = config.data.image_size
    else:
        image_size, why = choice.image_size(found, device)
        chosen["data.image_size"] = image_size
        reasons.append(why)
    if recipe == "small":  # the one recipe that fits itself to the data; the others are what their papers say
        if "length" not in asked:
            chosen["length"] = choice.length(found, device)
        if "model.name" not in asked:
            length = Duration.parse(chosen.get("length", config.length))
            chosen["model.name"], why = choice.model(found, image_size, length, device, config.batch_size)
            reasons.append(why)
        if found.is_grey and "augment.flip" not in asked:
            chosen["augment.flip"] = 0.0
            reasons.append("no mirror images, because grey images are often characters (--set augment.flip=0.5 allows them)")
    if recipe == "deit" and image_size <= 32 and "augment.crop" not in asked:
        chosen |= {"augment.crop": "pad", "augment.pad_px": 4}  # as the authors' code does for small images
    if not config.data.val_fraction:
        chosen["data.val_fraction"] = choice.val_fraction(found)
    if config.data.color == "auto":
        chosen["data.color"] = "grey" if found.is_grey else "rgb"
    if not config.data.crop_fraction:  # small images are used whole; photos keep a margin, as is usual
        chosen["data.crop_fraction"] = 1.0 if image_size <= choice.LARGEST_SMALL_PX else 0.875
    return override(config, chosen), "; ".join(reasons)


def _check_unchanged(config: RunConfig, asked: Mapping[str, Any]) -> None:
    """Raise ConfigError where a resumed run is asked for other settings than it began with."""
    for path, value in asked.items():
        if override(config, {path: value}) != config:
            raise ConfigError(
                f"A resumed run keeps its settings; {path} cannot become {value!r}.",
                remedy="leave the option out, or start a new run with another --out",
            )


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested tables as dotted paths; tables whose names are free (model.options) stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        full = f"{path}.{name}" if path else name
        flat |= _flat(value, full) if isinstance(value, dict) and full != "model.options" else {full: value}
    return flat
