"""`kawara compare`: would a CNN of the same size have been better? And which of two model files is?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kawara.analysis import comparison, latency
from kawara.analysis.cost import count_macs, count_parameters
from kawara.analysis.memory import answering_memory_bytes
from kawara.analysis.twins import Match, Twin, find_twin, size_of
from kawara.config import digest, to_dict
from kawara.data.sources import open_data
from kawara.files import write_json
from kawara.models import model_config
from kawara.report.comparison_page import write_comparison_page
from kawara.runtime import environment
from kawara.training.progress import Reporter
from kawara.training.run_config import RunConfig
from kawara.verbs.answering import Answered, Answers, answer, sides_of_files, strengths_of
from kawara.verbs.contenders import (
    Contender,
    Side,
    at_work,
    earlier_choices,
    keep_choices,
    out_folder,
    resolved,
    seeds_of,
    train_contenders,
)
from kawara.verbs.continuing import stem_of
from kawara.verbs.planning import TrainRequest

SEEDS = 3
RECORD, REPORT = "comparison.json", "report.html"


@dataclass(frozen=True)
class CompareRequest:
    """What a person asks of `kawara compare DATA`; everything but `data` may be left out."""

    data: str
    model: str | None = None
    twin: str = "auto"
    match: Match = "params"
    seeds: int = SEEDS
    recipe: str | None = None
    length: str | None = None
    image_size: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    out: str | None = None
    device: str | None = None
    threads: int = 1
    """To measure time with; training takes what it wants."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison found. `record` holds JSON values; docs/json.md says which."""

    folder: Path
    record: dict[str, Any]

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / REPORT

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"folder": str(self.folder), "report": str(self.report), **self.record}


def compare(request: CompareRequest, reporter: Reporter) -> Comparison | None:
    """Train a model and its twin alike, over several seeds, and compare them; None where somebody interrupted.

    The same command with the same `out` goes on where it was interrupted.

    Raises ConfigError where no twin can be found, RunFolderError where `out` holds something else.
    """
    seeds = seeds_of(request.seeds)
    out = out_folder(request.out, f"compare-{stem_of(request.data)}")
    with at_work(out, reporter):
        return _compare(request, seeds, out, reporter)


def _compare(request: CompareRequest, seeds: Sequence[int], out: Path, reporter: Reporter) -> Comparison | None:
    asked = TrainRequest(
        request.data, model=request.model, recipe=request.recipe, length=request.length, image_size=request.image_size,
        device=request.device, settings=request.settings,
    )  # fmt: skip
    earlier = earlier_choices(out)
    written, config = resolved(asked, earlier)
    name, options, matched = _twin(request, config, earlier)
    choices = {"model": config.model.name, "image_size": config.data.image_size}
    keep_choices(out, choices | {"twin": name, "options": options, "match": matched})
    reporter.say(f"{config.model.name} against {name}{_changes(options)}: {_in_words(matched)}.")
    settings = {path: value for path, value in request.settings.items() if path not in ("model.name", "model.options")}
    rival = dataclasses.replace(written, model=name, settings=settings | {"model.options": options})
    labels = _labels(config.model.name, name)
    contenders = [Contender(label, label, each) for label, each in zip(labels, (written, rival))]
    sides = train_contenders(contenders, seeds, out, reporter)
    if sides is None:
        reporter.say(f"Nothing is lost: the same command with --out {out} goes on.")
        return None
    settings_record = {"recipe": config.recipe, "length": config.length, "image_size": config.data.image_size, "seeds": list(seeds)}
    return _finish(
        sides, request.data, out, reporter, of="ways", split=request.split, device=request.device, threads=request.threads,
        extra={"match": matched, "training": settings_record},
    )  # fmt: skip


def compare_files(
    first: str | Path,
    second: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    out: str | None = None,
    device: str | None = None,
    threads: int = 1,
    reporter: Reporter,
) -> Comparison:
    """Compare two model files on the images that both were held out of, each with its own preprocessing."""
    sides = sides_of_files(first, second)
    folder = out_folder(out, f"compare-{stem_of(str(data))}")
    return _finish(sides, str(data), folder, reporter, of="models", split=split, device=device, threads=threads, extra={})


def _twin(request: CompareRequest, config: RunConfig, earlier: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return name and options of the other side, and how well the sizes match; the twin that was found before, where there is one.

    A latency measured again might choose another.
    """
    if (
        request.twin in ("auto", earlier.get("twin"))
        and earlier.get("model") == config.model.name
        and request.match == earlier["match"]["by"]
    ):
        return earlier["twin"], earlier["options"], earlier["match"]
    num_classes = len(open_data(request.data).class_names)
    shape = {"num_classes": num_classes, "image_size": config.data.image_size, "channels": 1 if config.data.color == "grey" else 3}
    if request.twin == "auto":
        twin: Twin = find_twin(config.model.name, request.match, **shape, options=config.model.options)
        return twin.name, twin.options, {"by": request.match, "mismatch": twin.mismatch}
    own, other = (
        size_of(model_config(name, **shape, **options)) for name, options in ((config.model.name, config.model.options), (request.twin, {}))
    )
    return request.twin, {}, {"by": "params", "mismatch": other.parameters / own.parameters - 1}


def _in_words(matched: Mapping[str, Any]) -> str:
    what = {"params": "parameters", "macs": "MACs", "latency": "milliseconds an image"}[matched["by"]]
    return f"{abs(matched['mismatch']):.1%} {'more' if matched['mismatch'] > 0 else 'fewer'} {what}"


def _changes(options: Mapping[str, Any]) -> str:
    changes = ", ".join(f"{name} {'-'.join(map(str, value)) if isinstance(value, list) else value}" for name, value in options.items())
    return f" ({changes})" if changes else ""


def _labels(first: str, second: str) -> tuple[str, str]:
    return (first, second) if first != second else (first, f"{second}-twin")


def _finish(
    sides: Sequence[Side],
    data: str,
    out: Path,
    reporter: Reporter,
    *,
    of: Literal["models", "ways"],
    split: str | None,
    device: str | None,
    threads: int,
    extra: dict[str, Any],
) -> Comparison:
    """Let both sides answer, measure what they cost, and write record and page."""
    answered = answer(sides, data, split=split, device=device, reporter=reporter)
    first, second = answered.sides
    verdict = comparison.judge(first.right, second.right, of=of)
    reporter.say("measuring time and memory …")
    record = {
        "compared": of,
        "data": data,
        "split": answered.split,
        "num_images": answered.num_images,
        "num_classes": answered.num_classes,
        "num_spoiled": answered.num_spoiled,
        "labels": [side.label for side in sides],
        "verdict": verdict.to_dict(),
        "mcnemar": _mcnemar(sides, answered),
        "sides": [
            side_record(side, answers) | cost
            for side, answers, cost in zip(sides, answered.sides, _costs([first.model.model, second.model.model], threads))
        ],
        "robustness": _robustness(first, second),
        "threads": threads,
        "environment": environment() | {"device": str(first.model.device)},
        **extra,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, record)
    write_comparison_page(out / REPORT, record)
    return Comparison(out, record)


def side_record(side: Side, answers: Answers) -> dict[str, Any]:
    """Return what one side is worth, as JSON values: means over its seeds."""
    top1, interval = comparison.accuracy_with_seeds(answers.right)
    means = {name: float(np.mean([metrics[name] for metrics in answers.metrics])) for name in ("balanced_accuracy", "nll", "ece")}
    card = answers.model.card
    return {
        "label": side.label,
        "model": card.name,
        "config": to_dict(card.config),
        "config_digest": side.digest or digest(card.config),
        "files": [str(file) for file in side.files],
        "seeds": list(side.seeds),
        "top1": top1,
        "top1_ci95": list(interval),
        "top1_of_seeds": [float(value) for value in answers.right.mean(axis=1)],
        **means,
        "training_seconds": side.training_seconds,
        "training_images_per_second": side.images_per_second,
    }


def _mcnemar(sides: Sequence[Side], answered: Answered) -> list[dict[str, Any]]:
    """Return the exact test of every pair of models with the same seed."""
    first, second = answered.sides
    seeds = sides[0].seeds or (None,) * len(first.right)
    tests = [comparison.mcnemar(one, other) for one, other in zip(first.right, second.right)]
    return [{"seed": seed, **dataclasses.asdict(test)} for seed, test in zip(seeds, tests)]


def _costs(pair: Sequence[Any], threads: int) -> list[dict[str, Any]]:
    """Return what each model costs: parameters, MACs, time, memory, and cost over the image size."""
    configs = [model.config for model in pair]
    latencies = latency.batch_one_latency(pair, threads=threads)
    throughputs = latency.throughput(pair, threads=threads)
    sizes = sorted({side for config in configs for side in latency.usual_sizes(config)})
    curves = latency.cost_over_size(configs, sizes, threads=threads, device=next(pair[0].parameters()).device)
    return [
        {
            "parameters": count_parameters(model),
            "macs": count_macs(model),
            "latency_p50_ms": time.p50_ms,
            "latency_p95_ms": time.p95_ms,
            "images_per_second": rate.images_per_second,
            "batch_size": rate.batch_size,
            "memory_bytes": answering_memory_bytes(model.config, threads=threads),
            "cost_over_size": [dataclasses.asdict(cost) for cost in curve],
        }
        for model, time, rate, curve in zip(pair, latencies, throughputs, curves)
    ]


def _robustness(first: Answers, second: Answers) -> dict[str, list[dict[str, Any]]]:
    """Return, for each corruption and strength, both accuracies and their paired difference."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in first.spoiled:
        found[name] = []
        for level, strength in enumerate(strengths_of(name)):
            one, other = first.spoiled[name][:, level], second.spoiled[name][:, level]
            difference = comparison.paired_difference(one, other)
            found[name].append(
                {
                    "strength": strength,
                    "top1": [float(one.mean()), float(other.mean())],
                    "difference": difference.value,
                    "difference_ci95": list(difference.interval),
                }
            )
    return found
