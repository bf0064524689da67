"""`kawara bench`: how fast are these models on this machine, in each run time, and what do they cost?"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kawara import models
from kawara.analysis.energy import energy_of
from kawara.analysis.latency import seconds_in_turns
from kawara.analysis.memory import answering_memory_bytes
from kawara.analysis.peak import matrix_peak
from kawara.analysis.twins import Match, find_twin, size_of
from kawara.edge.footprint import graph_memory_bytes
from kawara.edge.runners import RUN_TIMES, Network, Runner, RunTime, available, runner
from kawara.edge.running import SUFFIXES, open_exported
from kawara.errors import ConfigError, UnknownNameError
from kawara.files import write_json
from kawara.models import MODELS, ImageModel, ViTConfig
from kawara.report.bench_page import write_bench_page
from kawara.runtime import environment
from kawara.training.progress import Reporter
from kawara.training.run_folder import next_free
from kawara.verbs.evaluation import evaluate
from kawara.weights import ModelCard, open_model

RECORD, REPORT = "bench.json", "report.html"
_FEWEST, _MOST = 5, 200
_WARM_UP = 2


@dataclass(frozen=True)
class BenchRequest:
    """What a person asks of `kawara bench`; everything but `models` may be left out."""

    models: Sequence[str]
    """Model files, names of `kawara models` (with weights of chance: time does not depend on them), or exported .onnx and .xml files."""
    threads: Sequence[int] = (1,)
    batches: Sequence[int] = (1,)
    image_sizes: Sequence[int] = ()
    """Sides in px; () is each model's own."""
    run_times: Sequence[str] = ()
    """() is all that are here."""
    data: str | None = None
    twin: bool = False
    match: Match = "params"
    seconds: float = 2.0
    """How long each case is repeated."""
    out: str | None = None


@dataclass(frozen=True)
class Bench:
    """What was measured. `record` holds JSON values; docs/json.md says which."""

    folder: Path
    record: dict[str, Any]

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / REPORT

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"folder": str(self.folder), "report": str(self.report), **self.record}


@dataclass(frozen=True)
class _Entry:
    """One model; `model` is None for an exported file, which runs as a whole."""

    label: str
    source: str
    config: Any
    model: ImageModel | None
    card: ModelCard | None = None

    def at(self, side: int | None) -> ImageModel:
        """Return the model for square images of that side; beyond its own size with weights of chance."""
        assert self.model is not None
        if side is None or self.config.image_size == (side, side):
            return self.model
        return models.build(dataclasses.replace(self.config, image_size=(side, side))).eval()


def bench(request: BenchRequest, reporter: Reporter) -> Bench:
    """Measure latency, throughput, memory and energy of models in each run time, side by side, and write record and page.

    Raises ConfigError for options that do not fit or a run time that is not installed, ModelFileError for a file that cannot be read.
    """
    _check(request)
    run_times = _run_times(request.run_times)
    out = next_free(Path("runs") / "bench-0") if request.out is None else Path(request.out)
    entries = _entries(request)
    accuracy = {entry.label: _accuracy(entry, request.data, reporter) for entry in entries}
    peaks = {threads: matrix_peak(threads) for threads in request.threads}
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    sides: Sequence[int | None] = tuple(request.image_sizes) or (None,)
    with tempfile.TemporaryDirectory(prefix="kawara-bench-") as folder:
        cases = list(itertools.product(sides, request.threads, request.batches))
        networks = {side: _networks(entries, side, Path(folder)) for side in sides}
        for number, (side, threads, batch) in enumerate(cases):
            what = f"{f'{side} px, ' if side else ''}{threads} {'thread' if threads == 1 else 'threads'}, batch {batch}"
            reporter.progress("measuring", number / len(cases), what)
            rows += _measure(entries, networks[side], run_times, threads, batch, request.seconds, peaks[threads], failures)
        reporter.say("measuring memory …")
        _add_footprints(rows, entries, networks[sides[0]], request.threads[0])
    record = {
        "models": [_describe(entry, accuracy[entry.label]) for entry in entries],
        "run_times": list(run_times),
        "rows": rows,
        "failures": [dict(failure) for failure in {tuple(sorted(failure.items())): failure for failure in failures}.values()],
        "matrix_peak_macs": {str(threads): peak for threads, peak in peaks.items()},
        "data": request.data,
        "seconds": request.seconds,
        "environment": environment(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, record)
    write_bench_page(out / REPORT, record)
    return Bench(out, record)


def _check(request: BenchRequest) -> None:
    for name, values in (("--threads", request.threads), ("--batch", request.batches), ("--image-size", request.image_sizes)):
        if any(value < 1 for value in values):
            raise ConfigError(f"{name} takes whole numbers from 1.", got=", ".join(map(str, values)))
    if not 0 < request.seconds <= 600:
        raise ConfigError("--seconds is how long each case is repeated.", got=request.seconds, allowed="up to 600")


def _run_times(asked: Sequence[str]) -> tuple[RunTime, ...]:
    here = available()
    for name in asked:
        if name not in RUN_TIMES:
            raise UnknownNameError("run time", name, RUN_TIMES)
        if name not in here:
            raise ConfigError(f"The run time {name} is not installed.", remedy="pip install 'kawara[openvino]', which has them all")
    return tuple(name for name in here if not asked or name in asked)


def _entries(request: BenchRequest) -> list[_Entry]:
    entries: list[_Entry] = []
    for source in request.models:
        if Path(source).suffix in SUFFIXES:
            _, card = open_exported(source)
            entries.append(_Entry(Path(source).name, source, card.config, None, card))
        elif source in MODELS:
            entries.append(_Entry(source, source, MODELS[source].config, models.create_model(source).eval()))
        else:
            model, card, _ = open_model(source)
            entries.append(_Entry(card.name, source, model.config, model, card))
        if request.twin and entries[-1].model is not None and isinstance(entries[-1].config, ViTConfig):
            entries.append(_twin(entries[-1], request.match))
    labels = [entry.label for entry in entries]
    # Files of the same model are told apart by their paths.
    return [dataclasses.replace(entry, label=entry.source) if labels.count(entry.label) > 1 else entry for entry in entries]


def _twin(entry: _Entry, match: Match) -> _Entry:
    config, name = entry.config, entry.card.name if entry.card else entry.label
    row = MODELS[name].config
    shape = {"num_classes": config.num_classes, "image_size": config.image_size, "channels": config.channels}
    differing = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in shape and getattr(config, field.name) != getattr(row, field.name)
    }
    twin = find_twin(name, match, **shape, options=differing)
    return _Entry(f"{twin.name} (twin)", twin.name, twin.config, models.build(twin.config).eval())


def _accuracy(entry: _Entry, data: str | None, reporter: Reporter) -> dict[str, Any] | None:
    """Return the top-1 accuracy of a model on `data`; without data, what its card says of the images it was held out of."""
    if entry.card is None:
        return None
    if data is not None:
        found = evaluate(entry.source, data, reporter=reporter)
        return {name: found.metrics[name] for name in ("top1", "top1_ci95")} | {"images": f"{data}, {found.split}"}
    metrics = entry.card.metrics or {}
    if "top1" not in metrics or entry.model is None:  # an exported file may answer otherwise than the model that it was made of
        return None
    return {name: metrics[name] for name in ("top1", "top1_ci95")} | {"images": f"as trained, {metrics.get('split', 'val')}"}


def _networks(entries: Sequence[_Entry], side: int | None, folder: Path) -> dict[str, Network]:
    """Return each model at that size, as far as it can be built for it."""
    networks = {}
    for number, entry in enumerate(entries):
        if entry.model is None:
            continue
        try:
            networks[entry.label] = Network(entry.at(side), folder, f"{number}-{side}")
        except ConfigError:
            continue
    return networks


def _measure(
    entries: Sequence[_Entry],
    networks: dict[str, Network],
    run_times: Sequence[RunTime],
    threads: int,
    batch: int,
    seconds: float,
    peak: float,
    failures: list[dict[str, str]],
) -> list[dict[str, Any]]:
    """Time every model in every run time, in turns, for one size, number of threads and batch."""
    runs: list[Runner] = []
    rows: list[dict[str, Any]] = []
    for entry, name, shape, run in _runners(entries, networks, run_times, threads, batch, failures):
        sized = dataclasses.replace(entry.config, image_size=shape[-2:]) if entry.model is not None else entry.config
        rows.append(
            {
                "model": entry.label,
                "run_time": name,
                "whole": entry.model is None,
                "threads": threads,
                "batch": batch,
                "image_size_px": shape[-1],
                "macs": size_of(sized).macs,
            }
        )
        runs.append(run)
    if not runs:
        return []
    slowest = float(seconds_in_turns(runs, 1, warm_up=1).max())
    repeats = min(_MOST, max(_FEWEST, math.ceil(seconds / slowest)))
    for row, times in zip(rows, seconds_in_turns(runs, repeats, warm_up=_WARM_UP)):
        p50, p95 = np.percentile(times, [50, 95])
        row |= {
            "p50_ms": float(1e3 * p50),
            "p95_ms": float(1e3 * p95),
            "images_per_second": batch / float(p50),
            "repeats": repeats,
            "share_of_peak": row["macs"] * batch / float(p50) / peak,
            "memory_bytes": None,
            "joules_per_image": None,
        }
    if batch == 1:
        for row, run in zip(rows, runs):
            row["joules_per_image"] = energy_of(run)
    return rows


def _runners(
    entries: Sequence[_Entry],
    networks: dict[str, Network],
    run_times: Sequence[RunTime],
    threads: int,
    batch: int,
    failures: list[dict[str, str]],
) -> Iterator[tuple[_Entry, str, tuple[int, ...], Runner]]:
    """Make ready what can run; what cannot is told in `failures`."""
    draw = np.random.default_rng(0)
    for entry in entries:
        if entry.model is None:
            assert entry.card is not None
            session, _ = open_exported(entry.source, threads)
            height, width = entry.card.preprocessing.image_size
            pixels = draw.integers(0, 256, (batch, height, width, entry.card.preprocessing.channels), dtype=np.uint8)
            name = "onnx" if Path(entry.source).suffix == ".onnx" else "openvino"
            yield entry, name, (height, width), lambda session=session, pixels=pixels: session(pixels)
            continue
        network = networks.get(entry.label)
        if network is None:
            continue
        image = draw.standard_normal((batch, *network.image_shape), dtype=np.float32)
        for name in run_times:
            try:
                yield entry, name, network.image_shape[1:], runner(network, name, image, threads)
            except ConfigError as error:
                failures.append({"model": entry.label, "run_time": name, "reason": f"{error.what} {error.got or ''}".strip()})


def _add_footprints(rows: list[dict[str, Any]], entries: Sequence[_Entry], networks: dict[str, Network], threads: int) -> None:
    """Measure, at the first size, the memory that a process grows by to answer one image."""
    first = {entry.label: next((row["image_size_px"] for row in rows if row["model"] == entry.label), None) for entry in entries}
    for label, name in dict.fromkeys((row["model"], row["run_time"]) for row in rows):
        network = networks.get(label)
        if network is None or name == "compile":
            continue
        if name == "torch":
            taken = answering_memory_bytes(network.model.config, threads=threads)
        else:
            taken = graph_memory_bytes(network.graph(), name, network.image_shape, threads=threads)
        for row in rows:
            if (row["model"], row["run_time"], row["image_size_px"]) == (label, name, first[label]):
                row["memory_bytes"] = taken


def _describe(entry: _Entry, accuracy: dict[str, Any] | None) -> dict[str, Any]:
    size = size_of(entry.config)
    return {
        "label": entry.label,
        "source": entry.source,
        "family": models.family_of(entry.config),
        "image_size": list(entry.config.image_size),
        "parameters": size.parameters,
        "macs": size.macs,
        "accuracy": accuracy,
        "attention_overtakes_px": _overtaking_side(entry.config),
    }


def _overtaking_side(config: Any) -> int | None:
    """Return the side from which the products of attention, 2 N² D, cost more than the linear layers, 4 N D² + 2 N D F: N = 2 D + F."""
    if not isinstance(config, ViTConfig):
        return None
    linear = (3 if config.mlp == "swiglu" else 2) * config.mlp_hidden
    return math.ceil(config.patch_size * math.sqrt(2 * config.width + linear / 2 - config.num_prefix))
