"""Where a run writes, and whether it goes on with what is there.

in the folder                                          the command
nothing, or the remains of a start that was killed     begins a run
an unfinished run of the same images and settings      goes on with it
an unfinished run of others                            says what differs
a finished run, or anything else                       is refused: nothing is overwritten
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kawara.config import to_yaml
from kawara.data.sources import ImageData
from kawara.errors import ConfigError, DataError, RunFolderError
from kawara.files import held, write_json, write_text
from kawara.runtime import environment
from kawara.training.progress import Reporter
from kawara.training.run_folder import RunFolder, claimed_next, next_free, numbered
from kawara.verbs.planning import Plan, Trained, TrainRequest, read_config, refuse_other_settings

RUNS = Path("runs")


Digests = dict[str, str | None]


def digests(plan: Plan) -> Digests:
    """Return digests of the models that a run begins with; to be asked for before one of them gets a new head."""
    return {"pretrained": _digest(plan.start), "teacher": _digest(plan.teacher)}


def find(request: TrainRequest) -> RunFolder | None:
    """Return the folder that a request names: --out, or with --resume the latest run of the data; None for a new one.

    There need be no run in it yet, with --resume either: one that was killed at its very start has left nothing.

    Raises RunFolderError where the run there is finished, or where there is something else.
    """
    if request.out is not None:
        folder = RunFolder(request.out)
    elif request.resume and (runs := numbered(RUNS, stem_of(request.data))):
        folder = RunFolder(runs[-1])
    else:
        return None
    if request.replace and folder.state in ("unfinished", "finished"):
        with held(folder.path):
            shutil.rmtree(folder.path)
    if folder.state == "finished":
        raise RunFolderError(
            f"{folder.path} exists already; its run is finished.",
            remedy=f"kawara predict {folder.model} IMAGES, or --out {next_free(folder.path)} to train anew",
        )
    if folder.state == "other":
        what = f"There is no run to resume in {folder.path}." if request.resume else f"{folder.path} exists already."
        raise RunFolderError(what, remedy=f"--out {next_free(folder.path)}")
    return folder


@contextlib.contextmanager
def claimed(folder: RunFolder | None, request: TrainRequest) -> Iterator[RunFolder]:
    """Keep other processes out of the run's folder; None stands for the next free one in runs/."""
    if folder is None:
        with claimed_next(RUNS, stem_of(request.data)) as folder:
            yield folder
        return
    state = folder.state
    with folder.claimed():
        if folder.state != state:  # another process was here between the first look and the lock
            raise RunFolderError(f"Another process was at work in {folder.path} just now.", remedy="the same command again")
        yield folder


def begin(folder: RunFolder, plan: Plan, inputs: Digests, images: ImageData, data: str) -> None:
    """Write what a run begins with. The configuration comes last: with it the run has begun."""
    write_json(folder.environment, environment() | {"device": str(plan.device)})
    sizes = {name: len(split) for name, split in images.splits.items()}
    write_json(folder.inputs, {"data": data, "images": images.fingerprint, "splits": sizes, **inputs})
    write_text(folder.config, to_yaml(plan.config))


def check_inputs(folder: RunFolder, inputs: Digests, images: ImageData) -> None:
    """Raise DataError where images or models are not those that the run in `folder` began with."""
    began = _began_with(folder)
    if began.get("images", images.fingerprint) != images.fingerprint:
        sizes = ", ".join(f"{name} {count}" for name, count in began.get("splits", {}).items())
        raise DataError(
            f"The images are not those that the run in {folder.path} began with.",
            got=", ".join(f"{name} {len(split)}" for name, split in images.splits.items()) + f"; then {sizes}",
            remedy=f"the images as they were ({began.get('data')}), or --out {next_free(folder.path)} for a new run",
        )
    for what, digest in inputs.items():
        if began.get(what, digest) != digest:
            raise DataError(
                f"The {what} model is not the one that the run in {folder.path} began with.",
                remedy=f"the file as it was, or --out {next_free(folder.path)} for a new run",
            )


def mention_unfinished(folder: RunFolder, plan: Plan, images: ImageData, request: TrainRequest, reporter: Reporter) -> None:
    """Name an unfinished run of the same images and settings as the new one in `folder`, and the command that goes on with it."""
    for path in reversed(numbered(folder.path.parent, stem_of(request.data))):
        other = RunFolder(path)
        if path == folder.path or other.state != "unfinished" or _began_with(other).get("images") != images.fingerprint:
            continue
        with contextlib.suppress(ConfigError, RunFolderError), held(path):  # not one that is at work now
            refuse_other_settings(other, read_config(other), plan.config)
            reporter.say(f"{path} holds an unfinished run of the same. To go on with it instead:  {_command(request, other)}")
            return


def how_to_go_on(request: TrainRequest, folder: RunFolder | None) -> str:
    """Return what to tell a person who stopped a run at once."""
    if folder is None or folder.state == "new":
        return "Stopped before training began. To begin again: the same command."
    if folder.state == "finished":
        return f"The run in {folder.path} is finished."
    return f"Stopped at once; what was saved last is kept. To go on:  {_command(request, folder)}"


def stopped(request: TrainRequest, folder: RunFolder, step: int) -> str:
    """Return what to tell a person whose run has stopped after `step`."""
    return f"Stopped at step {step}; nothing is lost. To go on:  {_command(request, folder)}"


def stem_of(data: str) -> str:
    """Return a short name of a data set for folders."""
    name = Path(data.removeprefix("hf:")).resolve().name if data not in ("digits",) else data
    return name.split(".")[0] or "run"


def _command(request: TrainRequest, folder: RunFolder) -> str:
    return shlex.join(["kawara", "train", request.data, "--out", str(folder.path), "--resume"])


def _began_with(folder: RunFolder) -> dict[str, Any]:
    try:
        found = json.loads(folder.inputs.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(taken: Trained | None) -> str | None:
    if taken is None:
        return None
    digest = hashlib.sha256(repr(taken.card.preprocessing).encode())
    for name, tensor in sorted(taken.model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
