"""Training that is to be compared: the same request with something changed, over several seeds, each run in a folder of its own.

<out>/<side>/seed-<number>/ is an ordinary run folder; <out>/choices.json keeps what was chosen for all of them. A finished run is not
repeated and an interrupted one goes on, so that the same command continues a comparison.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kawara.config import digest, override
from kawara.errors import ConfigError, RunFolderError
from kawara.files import claimed, write_json
from kawara.training.progress import Reporter
from kawara.training.run_config import RunConfig
from kawara.training.run_folder import RunFolder, next_free
from kawara.verbs.planning import TrainRequest, read_config, refuse_other_settings
from kawara.verbs.training import resolve, run_training

CHOICES = "choices.json"


@dataclass(frozen=True)
class Contender:
    """One way to make a model: `label` names it on the screen, `folder` on the disk; the seed of `request` is not looked at."""

    label: str
    folder: str
    request: TrainRequest


@dataclass(frozen=True)
class Side:
    """What is compared: one model file or several that differ only in their seed."""

    label: str
    files: tuple[Path, ...]
    seeds: tuple[int, ...] = ()
    training_seconds: float | None = None
    """Of one run, evaluation and report included; a mean over the seeds."""
    images_per_second: float | None = None
    digest: str = ""
    """Of the configuration, the seed left out."""


def earlier_choices(out: Path) -> dict[str, Any]:
    """Return what an earlier start of the same comparison chose, {} for a new one. Raises RunFolderError for a damaged file."""
    try:
        return json.loads((out / CHOICES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{out / CHOICES} cannot be read.", got=error, remedy=f"--out {next_free(out)}") from None


def keep_choices(out: Path, choices: Mapping[str, Any]) -> None:
    """Write down what was chosen, for the next start."""
    write_json(out / CHOICES, dict(choices))


def resolved(request: TrainRequest, earlier: Mapping[str, Any]) -> tuple[TrainRequest, RunConfig]:
    """Return the request with every choice that depends on the machine written down, and its configuration.

    What is compared must not be chosen twice: the model that fits a length in minutes may differ from one look at the clock to the next.
    """
    model, image_size = request.model or earlier.get("model"), request.image_size or earlier.get("image_size")
    config = resolve(dataclasses.replace(request, model=model, image_size=image_size), Reporter(quiet=True))
    if config.model.pretrained or config.distillation.kind != "none":
        raise ConfigError("Only models from scratch are compared.", remedy="kawara train each, then kawara compare A B DATA")
    written = dataclasses.replace(
        request, model=config.model.name, recipe=config.recipe, length=config.length, image_size=config.data.image_size
    )
    return written, config


def seeds_of(count: int) -> tuple[int, ...]:
    """Return the seeds 0, 1, … of so many runs. Raises ConfigError for none."""
    if count < 1:
        raise ConfigError("A comparison needs at least one seed.", got=count, remedy="--seeds 3")
    return tuple(range(count))


def out_folder(out: str | None, stem: str) -> Path:
    """Return the folder of a comparison: the one asked for, else the first free runs/<stem>-N. Raises RunFolderError for a file."""
    path = Path(out) if out else next_free(Path("runs") / f"{stem}-0")
    if path.is_file():
        raise RunFolderError(f"{path} is a file.", remedy="--out with the name of a folder")
    if RunFolder(path).config.exists():
        raise RunFolderError(f"{path} is the folder of a training run.", remedy=f"--out {next_free(path)}")
    return path


@contextlib.contextmanager
def at_work(out: Path, reporter: Reporter) -> Iterator[None]:
    """Keep other processes out of the folder of a comparison; to a person who stops it at once, say how to go on."""
    try:
        with claimed(out):
            yield
    except KeyboardInterrupt:
        reporter.say(f"Nothing is lost: the same command with --out {out} goes on.")
        raise


def train_contenders(contenders: Sequence[Contender], seeds: Sequence[int], out: Path, reporter: Reporter) -> list[Side] | None:
    """Train every contender with every seed, seed by seed, or take what is there already; None where somebody interrupted.

    Seed by seed, so that a machine that slows down, or a person who stops early, treats all sides alike.
    """
    total, done = len(contenders) * len(seeds), 0
    for seed in seeds:
        for contender in contenders:
            done += 1
            reporter.say(f"\nrun {done} of {total}: {contender.label}, seed {seed}")
            if not _train(contender, seed, _run_folder(out, contender, seed), reporter):
                return None
    return [_side(contender, seeds, out) for contender in contenders]


def _run_folder(out: Path, contender: Contender, seed: int) -> RunFolder:
    return RunFolder(out / contender.folder / f"seed-{seed}")


def _train(contender: Contender, seed: int, folder: RunFolder, reporter: Reporter) -> bool:
    """Make sure that the run is finished; False where it was interrupted."""
    # A contender that learns nothing is a result like any other: it is told, not stopped.
    settings = {"doctor": "warn"} | dict(contender.request.settings)
    request = dataclasses.replace(contender.request, seed=seed, out=str(folder.path), settings=settings)
    if folder.state in ("unfinished", "finished"):
        remedy = f"--out {next_free(folder.path.parents[1])}, or the options of the first time"
        refuse_other_settings(folder, read_config(folder), resolve(request, Reporter(quiet=True)), remedy)
    if folder.state == "finished":
        reporter.say(f"finished already: {folder.path}")
        return True
    return not run_training(request, reporter).interrupted


def _side(contender: Contender, seeds: Sequence[int], out: Path) -> Side:
    folders = [_run_folder(out, contender, seed) for seed in seeds]
    outcomes = [json.loads(folder.metrics.read_text(encoding="utf-8")) for folder in folders]
    config = read_config(folders[0])
    return Side(
        label=contender.label,
        files=tuple(folder.model for folder in folders),
        seeds=tuple(seeds),
        training_seconds=sum(outcome["seconds"] for outcome in outcomes) / len(outcomes),
        images_per_second=sum(outcome["images_per_second"] for outcome in outcomes) / len(outcomes),
        digest=digest(override(config, {"seed": 0})),
    )
