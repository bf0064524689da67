"""`kawara predict --out FOLDER`: label a large collection into Parquet files, here or with Ray, and go on where it stopped.

The files are cut, in their order, into parts of a fixed number. A part is answered as a whole and appears under its name only when it is
complete: what is there is done, what is not is still to do, whoever does it. `labels.json` says which model and which files the folder is
about. Ray Data (https://docs.ray.io/en/latest/data/data.html) spreads the parts over the cores, GPUs and machines that it has, starts a
worker that has died anew and gives it its part again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from kawara.errors import ConfigError, DecodeError, RunFolderError
from kawara.files import replacing, write_json
from kawara.predict import Prediction, Predictor, load
from kawara.runtime import choose_device
from kawara.training.progress import Reporter

Engine = Literal["local", "ray"]

PART_FILES = 1024
ABOUT = "labels.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Labelling:
    """What was labelled: `failed` of `num_files` files could not be read, `done_before` of `num_parts` parts were there already."""

    folder: Path
    num_files: int
    failed: int
    num_parts: int
    done_before: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self) | {"folder": str(self.folder)}


@dataclass(frozen=True)
class _Job:
    """What a worker needs beside its files: it may be in another process, on another machine."""

    model: str
    folder: Path
    top: int
    batch_size: int
    device: str | None

    def path(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.parquet"


def label(
    model: str,
    files: Sequence[str],
    out: str | Path,
    *,
    engine: Engine = "local",
    top: int = 5,
    batch_size: int = 64,
    part_files: int = PART_FILES,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> Labelling:
    """Write the answers for `files` into Parquet files in the folder `out`; parts that are there already are kept.

    Columns: `path`; `label`, `index` and `score` of the likeliest class; `top_labels` and `top_scores`, best first; `error` says why a
    file has none.

    Raises:
        ConfigError: pyarrow, or Ray, is not installed; the model names no classes.
        RunFolderError: `out` is about another model or other files, or holds something else.
    """
    reporter = reporter or Reporter(quiet=True)
    _need("pyarrow.parquet")
    predictor = load(model, device=device)
    predictor.require_classes()
    source = str(Path(model).resolve()) if Path(model).exists() else model
    job = _Job(source, Path(out).resolve(), top, batch_size, device)
    _claim(Path(out), model, files, {"part_files": part_files, "top": top})
    parts = {number: files[start : start + part_files] for number, start in enumerate(range(0, len(files), part_files))}
    missing = {part: names for part, names in parts.items() if not job.path(part).exists()}
    done_before = len(parts) - len(missing)
    if done_before:
        reporter.say(f"{done_before} of {len(parts)} parts are done already.")
    answers = _with_ray(job, missing) if engine == "ray" else (_answer(job, predictor, *part) for part in missing.items())
    for done, _ in enumerate(answers, start=done_before + 1):
        reporter.progress("labelling", done / len(parts), f"{done} of {len(parts)} parts of {part_files} files")
    return Labelling(Path(out), len(files), _count_failed(job, len(parts)), len(parts), done_before)


def _claim(out: Path, model: str, files: Sequence[str], settings: dict[str, int]) -> None:
    """Say in the folder what it is about, or check that this is what it is about."""
    inputs = "\n".join(f"{file}\0{_size(file)}" for file in files).encode("utf-8", "surrogateescape")
    about = {
        "format_version": FORMAT_VERSION,
        "model": model,
        "model_digest": _digest_of_model(model),
        "files": len(files),
        "files_digest": hashlib.sha256(inputs).hexdigest(),
    } | settings
    path = out / ABOUT
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunFolderError(f"{out} holds something else.", remedy="another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, about)
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in about if name != "model" and there.get(name) != about[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise RunFolderError(f"{path} is damaged.", got=error, remedy="another --out") from None
    if different:
        what = {"model_digest": f"another model ({there.get('model')})", "files": "other images", "files_digest": "other images"}
        others = dict.fromkeys(what.get(name, f"{name} {there.get(name)}") for name in different)
        raise RunFolderError(
            f"{out} is about something else.", got=", ".join(others), remedy="another --out, or the command it was begun with"
        )


def _answer(job: _Job, predictor: Predictor, part: int, names: Sequence[str], files: Sequence[str] | None = None) -> None:
    """Write the file of one part. `names` are the files as they were given; `files` where they are, if that is not enough."""
    arrow, parquet = _need("pyarrow"), _need("pyarrow.parquet")
    files = files or names
    rows: list[tuple[Prediction | None, str | None]] = []
    for start in range(0, len(files), job.batch_size):
        rows += _answers(predictor, files[start : start + job.batch_size], job.top)
    columns = {
        "path": arrow.array(list(names), arrow.string()),
        "label": arrow.array([found and found.label for found, _ in rows], arrow.string()),
        "index": arrow.array([found and found.index for found, _ in rows], arrow.int32()),
        "score": arrow.array([found and found.score for found, _ in rows], arrow.float32()),
        "top_labels": arrow.array([found and [guess.label for guess in found.top] for found, _ in rows], arrow.list_(arrow.string())),
        "top_scores": arrow.array([found and [guess.score for guess in found.top] for found, _ in rows], arrow.list_(arrow.float32())),
        "error": arrow.array([reason for _, reason in rows], arrow.string()),
    }
    with replacing(job.path(part)) as temporary:
        parquet.write_table(arrow.table(columns), temporary)


def _answers(predictor: Predictor, files: Sequence[str], top: int) -> list[tuple[Prediction | None, str | None]]:
    """Return a prediction, or the reason why there is none, for each file."""
    try:
        return [(found, None) for found in predictor.predict(list(files), top=top, batch_size=len(files))]
    except DecodeError as error:
        if len(files) == 1:
            return [(None, error.reason)]
    return [answer for file in files for answer in _answers(predictor, [file], top)]


def _with_ray(job: _Job, parts: dict[int, Sequence[str]]) -> Iterator[None]:
    """Let Ray's workers write the parts; yield as each is done."""
    ray, ray_data = _need("ray"), _need("ray.data")
    if not parts:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    started_here = not ray.is_initialized()
    if started_here:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it has much to say on stderr that is no mistake
        ray.init(log_to_driver=False, logging_level="ERROR")
    try:
        context = ray_data.DataContext.get_current()
        context.enable_progress_bars = False
        context.actor_task_retry_on_errors = [OSError]  # a network drive that was away for a moment
        gpus = int(ray.cluster_resources().get("GPU", 0)) if choose_device(job.device).type == "cuda" else 0
        workers = min(len(parts), gpus or int(ray.cluster_resources().get("CPU", 1)))
        items = [
            {"part": part, "names": list(names), "files": [str(Path(name).resolve()) for name in names]} for part, names in parts.items()
        ]
        done = ray_data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Worker,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray_data.ActorPoolStrategy(min_size=1, max_size=workers),
            **({"num_gpus": 1} if gpus else {"num_cpus": 1}),
        )
        for _ in done.iter_rows():
            yield
    finally:
        if started_here:
            ray.shutdown()


class _Worker:
    """What runs in a worker of Ray: loads the model once and answers part after part."""

    def __init__(self, job: _Job):
        self.job, self.predictor = job, load(job.model, device=job.device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for part, names, files in zip(batch["part"], batch["names"], batch["files"]):
            _answer(self.job, self.predictor, int(part), list(names), list(files))
        return {"part": batch["part"]}


def _count_failed(job: _Job, num_parts: int) -> int:
    parquet = _need("pyarrow.parquet")
    return sum(
        len(column) - column.null_count
        for part in range(num_parts)
        for column in [parquet.read_table(job.path(part), columns=["error"]).column("error")]
    )


def _digest_of_model(model: str) -> str:
    path = Path(model)
    digest = hashlib.sha256()
    if not path.is_file():
        return hashlib.sha256(model.encode()).hexdigest()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def _size(file: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(file).st_size
    return -1


def _need(package: str) -> Any:
    """Import a package of the extra `ray`. Raises ConfigError where it is not installed."""
    try:
        return import_module(package)
    except ImportError as error:
        name = package.split(".")[0]
        raise ConfigError(f"This needs {name}, which is not installed.", got=error, remedy="pip install 'kawara[ray]'") from None
