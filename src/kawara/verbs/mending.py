"""The one command that mends a run: complete, to be copied as it stands."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import yaml

from kawara.config import read_file
from kawara.recipes import RECIPES
from kawara.training.run_config import RunConfig
from kawara.training.run_folder import next_free
from kawara.training.schedule import Duration
from kawara.verbs.planning import TrainRequest, flat_settings

LARGEST_SMALL_DATA = 100_000
MINUTES_ON_CPU = 5
RATES = ("optimizer.lr", "optimizer.lr_batch", "optimizer.muon_lr")
_OF_THE_DATA_OR_MACHINE = ("data.", "threads", "workers", "precision", "compile", "seed")
"""What the settings that outlive a change of recipe begin with."""


def mended(request: TrainRequest, config: RunConfig, *, folder: Path, num_images: int, on_cpu: bool) -> TrainRequest:
    """Return a request that does not have the fault of `request`.

    From scratch on up to 100,000 images with another recipe than `small`: `small`, which has a convolutional stem and rates of its own;
    what concerns data and machine stays as it was asked for, and on a CPU it is 5 minutes long unless another length in minutes was asked
    for. Otherwise the same request without the rates that it asked for, or, where it asked for none, at a tenth of the rates.
    `config` is that of the run. A request to go on with a run knows little of it: then the folder's config.yaml speaks for what was asked.
    """
    if not config.model.pretrained and config.recipe != "small" and num_images <= LARGEST_SMALL_DATA:
        return _small(request, on_cpu)
    if request.resume:
        request = TrainRequest(request.data, config=str(folder / "config.yaml"), out=request.out, device=request.device)
    asked_in_file = flat_settings(read_file(request.config)) if request.config else {}
    settings = {path: value for path, value in request.settings.items() if path not in RATES}
    in_file = [path for path in RATES if path in asked_in_file and (config.optimizer.name == "muon" or path != "optimizer.muon_lr")]
    if len(settings) == len(request.settings) and not in_file:
        settings |= {"optimizer.lr": _digits(config.optimizer.lr / 10)}
        if config.optimizer.name == "muon":
            settings |= {"optimizer.muon_lr": _digits(config.optimizer.muon_lr / 10)}
    for path in in_file:
        settings[path] = _recipes_own(config, path)
    return dataclasses.replace(request, settings=settings)


def command(request: TrainRequest, folder: Path) -> str:
    """Return `kawara train …` for a request. A run folder that was asked for, `folder`, becomes the next that is free."""
    words = ["kawara", "train", request.data]
    options: dict[str, Any] = {
        "--model": request.model,
        "--pretrained": request.pretrained,
        "--freeze": request.freeze,
        "--teacher": request.teacher,
        "--distill": request.distill,
        "--recipe": request.recipe,
        "--image-size": request.image_size,
        "--seed": request.seed,
        "--device": request.device,
        "--config": request.config,
        "--out": None if request.out is None else next_free(folder),
    }
    if request.length is not None:
        length = Duration.parse(request.length)
        options[f"--{length.unit}"] = f"{length.amount:.15g}"
    for name, value in options.items():
        if value is not None:
            words += [name, str(value)]
    for path, value in request.settings.items():
        words += ["--set", f"{path}={_yaml(value)}"]
    return shlex.join(words)


def _small(request: TrainRequest, on_cpu: bool) -> TrainRequest:
    kept = dict(request.settings)
    if request.config:
        kept = flat_settings(read_file(request.config)) | kept
    kept = {path: value for path, value in kept.items() if path.startswith(_OF_THE_DATA_OR_MACHINE)}
    length = request.length if request.length and Duration.parse(request.length).unit == "minutes" else None
    if length is None and on_cpu:
        length = f"{MINUTES_ON_CPU} minutes"
    return TrainRequest(
        request.data, recipe="small", length=length, image_size=request.image_size, out=request.out, seed=request.seed,
        device=request.device, settings=kept,
    )  # fmt: skip


def _recipes_own(config: RunConfig, path: str) -> Any:
    value: Any = RECIPES[config.recipe]() if config.recipe in RECIPES else RunConfig()
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _digits(value: float) -> float:
    return float(f"{value:.2g}")


def _yaml(value: Any) -> str:
    """Return a value as one line of YAML, as `--set` reads it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("...").strip()
