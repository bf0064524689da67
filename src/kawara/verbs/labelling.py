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
    """All that a worker needs: it may be in another process, on another machine."""

    model: str
    files: tuple[str, ...]
    folder: str
    top: int
    batch_size: int
    part_files: int
    device: str | None

    @property
    def num_parts(self) -> int:
        return -(-len(self.files) // self.part_files)

    def path(self, part: int) -> Path:
        return Path(self.folder) / f"part-{part:06d}.parquet"

    def files_of(self, part: int) -> Sequence[str]:
        return self.files[part * self.part_files : (part + 1) * self.part_files]


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
    where = tuple(str(Path(file).resolve()) for file in files) if engine == "ray" else tuple(files)
    job = _Job(source, where, str(Path(out).resolve()), top, batch_size, part_files, device)
    _claim(job, Path(out), files, model)
    missing = [part for part in range(job.num_parts) if not job.path(part).exists()]
    done_before = job.num_parts - len(missing)
    if done_before:
        reporter.say(f"{done_before} of {job.num_parts} parts are done already.")
    answers = _with_ray(job, missing, files) if engine == "ray" else (_answer(job, predictor, part, files) for part in missing)
    for done, _ in enumerate(answers, start=done_before + 1):
        reporter.progress("labelling", done / job.num_parts, f"{done} of {job.num_parts} parts of {part_files} files")
    return Labelling(Path(out), len(files), _count_failed(job), job.num_parts, done_before)


def _claim(job: _Job, out: Path, files: Sequence[str], model: str) -> None:
    """Say in the folder what it is about, or check that this is what it is about."""
    inputs = "\n".join(f"{file}\0{_size(file)}" for file in files).encode("utf-8", "surrogateescape")
    about = {
        "format_version": FORMAT_VERSION,
        "model": model,
        "model_digest": _digest_of_model(model),
        "files": len(files),
        "files_digest": hashlib.sha256(inputs).hexdigest(),
        "part_files": job.part_files,
        "top": job.top,
    }
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


def _answer(job: _Job, predictor: Predictor, part: int, names: Sequence[str]) -> None:
    """Write the file of one part; `names` are the files as they were given."""
    arrow, parquet = _need("pyarrow"), _need("pyarrow.parquet")
    files = job.files_of(part)
    rows: list[tuple[Prediction | None, str | None]] = []
    for start in range(0, len(files), job.batch_size):
        rows += _answers(predictor, files[start : start + job.batch_size], job.top)
    given = names[part * job.part_files : part * job.part_files + len(files)]
    columns = {
        "path": arrow.array(given, arrow.string()),
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


def _with_ray(job: _Job, parts: Sequence[int], names: Sequence[str]) -> Iterator[None]:
    """Let Ray's workers write the parts; yield as each is done."""
    ray, ray_data = _need("ray"), _need("ray.data")
    if not parts:
        return
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True)
    try:
        context = ray_data.DataContext.get_current()
        context.enable_progress_bars = False
        context.actor_task_retry_on_errors = [OSError]  # a network drive that was away for a moment
        handle = ray.put((job, tuple(names)))
        gpus = int(ray.cluster_resources().get("GPU", 0)) if choose_device(job.device).type == "cuda" else 0
        workers = min(len(parts), gpus or int(ray.cluster_resources().get("CPU", 1)))
        done = ray_data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts)).map_batches(
            _Worker,
            fn_constructor_args=(handle,),
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

    def __init__(self, handle: Any):
        self.job, self.names = _need("ray").get(handle)
        self.predictor = load(self.job.model, device=self.job.device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for part in batch["part"]:
            _answer(self.job, self.predictor, int(part), self.names)
        return batch


def _count_failed(job: _Job) -> int:
    parquet = _need("pyarrow.parquet")
    return sum(
        len(column) - column.null_count
        for part in range(job.num_parts)
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
