"""The page and the table of `kawara bench`: what is fastest here, how fast each model is in each run time, and what size costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from kawara.files import write_text
from kawara.plots.bench import Timing, accuracy_plane, latencies, run_time_name
from kawara.plots.lines import MAX_LINES, Line
from kawara.plots.style import Language
from kawara.plots.tradeoff import cost_over_size
from kawara.report import wording
from kawara.report.page import figure_source, render
from kawara.report.wording import Text

LANGUAGES: tuple[Language, ...] = ("en", "ja")


def write_bench_page(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write the page, atomically: one HTML file that needs nothing else. `record` is as docs/json.md has it."""
    write_text(path, bench_page(record))


def bench_page(record: Mapping[str, Any]) -> str:
    """Return the page as HTML."""
    first = first_case(record)
    timings = [_timing(row, record) for row in first]
    has_accuracy = any(timing.accuracy is not None for timing in timings)
    sides = {row["image_size_px"] for row in record["rows"] if not row["whole"]}
    return render(
        "bench_page.html",
        record=record,
        wording=wording,
        sentence=sentence(record),
        case=_case(first),
        rows=[_cells(row) for row in record["rows"]],
        models=[_model_cells(model) for model in record["models"]],
        latencies=_in_both_languages(latencies(timings, language=each) for each in LANGUAGES),
        plane=_in_both_languages(accuracy_plane(timings, language=each) for each in LANGUAGES) if has_accuracy else None,
        costs=[
            _in_both_languages(cost_over_size(_cost_lines(record, quantity), quantity, language=each) for each in LANGUAGES)
            for quantity in ("macs", "ms")
        ]
        if len(sides) > 1
        else [],
        peak=[(threads, f"{macs / 1e9:.1f}") for threads, macs in record["matrix_peak_macs"].items()],
        run_time_name=run_time_name,
    )


def bench_table(record: Mapping[str, Any]) -> Table:
    """Return a row for each model, run time, number of threads, batch and size, for the terminal."""
    table = Table(box=None, pad_edge=False)
    for name, justify in (("model", "left"), ("run time", "left"), *((name, "right") for name in ("px", "threads", "batch"))):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in ("p50 ms", "p95 ms", "images/s", "of peak", "memory", "energy"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in record["rows"]:
        cells = _cells(row)
        table.add_row(escape(cells["model"]), *(cells[name] for name in list(cells)[1:]))
    return table


def sentence(record: Mapping[str, Any]) -> Text:
    """Return the answer in one sentence: which model is fastest in which run time, and how far from the next model."""
    first = first_case(record)
    if not first:
        return Text("Nothing could be measured", "測定できたものがありません")
    best = {row["model"]: row for row in sorted(first, key=lambda row: -row["p50_ms"])}
    ranked = sorted(best.values(), key=lambda row: row["p50_ms"])
    fastest = ranked[0]
    name = run_time_name(fastest["run_time"])
    en = f"{fastest['model']} in {name}: {_number(fastest['p50_ms'])} ms"
    ja = f"{fastest['model']}（{name}）：{_number(fastest['p50_ms'])} ms"
    if len(ranked) > 1:
        ratio = ranked[1]["p50_ms"] / fastest["p50_ms"]
        en += f", {ratio:.2f} times as fast as {ranked[1]['model']}"
        ja += f"、{ranked[1]['model']}の{ratio:.2f}倍の速さ"
    return Text(en, ja)


def first_case(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rows of the first number of threads, the first batch and each model's first size."""
    rows: list[Mapping[str, Any]] = record["rows"]
    if not rows:
        return []
    sizes: dict[str, int] = {}
    for row in rows:
        sizes.setdefault(row["model"], row["image_size_px"])
    wanted = (rows[0]["threads"], rows[0]["batch"])
    return [row for row in rows if (row["threads"], row["batch"]) == wanted and row["image_size_px"] == sizes[row["model"]]]


def _case(rows: list[Mapping[str, Any]]) -> Text:
    if not rows:
        return Text("", "")
    threads, batch = rows[0]["threads"], rows[0]["batch"]
    return Text(
        f"batch of {batch}, {threads} {'thread' if threads == 1 else 'threads'}, median", f"バッチ{batch}、{threads}スレッド、中央値"
    )


def _timing(row: Mapping[str, Any], record: Mapping[str, Any]) -> Timing:
    model = next(model for model in record["models"] if model["label"] == row["model"])
    top1 = model["accuracy"]["top1"] if model["accuracy"] else None
    return Timing(row["model"], row["run_time"], row["p50_ms"], row["p95_ms"], top1)


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    energy = row["joules_per_image"]
    return {
        "model": row["model"],
        "run_time": run_time_name(row["run_time"]) + (" *" if row["whole"] else ""),
        "size": str(row["image_size_px"]),
        "threads": str(row["threads"]),
        "batch": str(row["batch"]),
        "p50": _number(row["p50_ms"]),
        "p95": _number(row["p95_ms"]),
        "rate": f"{row['images_per_second']:,.0f}" if row["images_per_second"] >= 10 else f"{row['images_per_second']:.2f}",
        "peak": f"{100 * row['share_of_peak']:.0f} %",
        "memory": wording.memory(row["memory_bytes"]),
        "energy": wording.MISSING if energy is None else f"{1e3 * energy:.3g} mJ",
    }


def _model_cells(model: Mapping[str, Any]) -> dict[str, Any]:
    accuracy, side = model["accuracy"], model["attention_overtakes_px"]
    return {
        "label": model["label"],
        "size": "×".join(map(str, model["image_size"])),
        "parameters": wording.short_count(model["parameters"]),
        "macs": wording.short_count(model["macs"]),
        "accuracy": wording.percent(accuracy["top1"]) if accuracy else Text(wording.MISSING, wording.MISSING),
        "interval": wording.percent_range(accuracy["top1_ci95"]) if accuracy else None,
        "overtakes": wording.MISSING if side is None else f"{side:,} px",
    }


def _cost_lines(record: Mapping[str, Any], quantity: str) -> list[Line]:
    """Return a line for each model: its arithmetic, or its time in the run time that is fastest at its first size."""
    lines = []
    for row in sorted(first_case(record), key=lambda row: row["p50_ms"]):
        if row["whole"] or any(line.label == row["model"] for line in lines):
            continue
        same = ("model", "run_time", "threads", "batch")
        points = [other for other in record["rows"] if all(other[name] == row[name] for name in same)]
        points.sort(key=lambda other: other["image_size_px"])
        values = [other["macs"] / 1e6 if quantity == "macs" else other["p50_ms"] / other["batch"] for other in points]
        lines.append(Line(row["model"], np.array([other["image_size_px"] for other in points], float), np.array(values, float)))
    return lines[:MAX_LINES]


def _number(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def _in_both_languages(figures: Iterable[Figure]) -> dict[Language, dict[str, Any]]:
    return {language: figure_source(figure) for language, figure in zip(LANGUAGES, figures)}
