"""The page of a comparison: the verdict, how sure it is, what each side costs, and how both bear spoiled images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kawara.files import write_text
from kawara.plots.lines import Line
from kawara.plots.robustness import robustness
from kawara.plots.style import Language
from kawara.plots.tradeoff import Candidate, cost_over_size, pareto
from kawara.report import verdict, wording
from kawara.report.page import figure_source, render
from kawara.report.wording import Text

_Show = Callable[[Mapping[str, Any]], Text]
"""What of a side stands in its column."""

LANGUAGES: tuple[Language, ...] = ("en", "ja")
UNITS = {"noise": "deviation", "blur": "share_of_side", "shift": "share_of_side", "drop_random": "share_of_tiles"}
_RULER_LEAST = 0.02
"""The ruler of the difference reaches at least so far to either side."""


def write_comparison_page(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write the page, atomically: one HTML file that needs nothing else. `record` is the comparison as docs/json.md has it."""
    write_text(path, comparison_page(record))


def comparison_page(record: Mapping[str, Any]) -> str:
    """Return the page as HTML."""
    return render(
        "comparison_page.html",
        record=record,
        wording=wording,
        verdict=verdict,
        labels=record["labels"],
        sentence=verdict.verdict_sentence(record),
        explanation=verdict.verdict_explanation(record),
        ruler=_ruler(record["verdict"]),
        split=wording.split_name(record["split"]),
        worth=worth_rows(record["sides"]),
        cost=cost_rows(record["sides"]),
        spoiled=spoiled_rows(record["robustness"]),
        pareto=_in_both_languages(pareto(_candidates(record["sides"]), language=each) for each in LANGUAGES),
        costs=[
            _in_both_languages(cost_over_size(_cost_lines(record["sides"], quantity), quantity, language=each) for each in LANGUAGES)
            for quantity in ("macs", "ms")
        ],
        robustness=[_in_both_languages(_robustness_figure(record, name, each) for each in LANGUAGES) for name in record["robustness"]],
        environment=[(name, plain(value)) for name, value in record["environment"].items()],
    )


def _in_both_languages(figures: Iterable[Figure]) -> dict[Language, dict[str, Any]]:
    return {language: figure_source(figure) for language, figure in zip(LANGUAGES, figures)}


def _ruler(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return where difference and interval stand on a ruler with 0 in its middle, as shares of its length."""
    low, high = found["difference_ci95"]
    reach = max(_RULER_LEAST, 1.25 * max(abs(low), abs(high)))
    place = {name: 0.5 + value / (2 * reach) for name, value in (("value", found["difference"]), ("low", low), ("high", high))}
    return place | {"reach": f"{100 * reach:.1f}"}


def worth_rows(sides: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each measure of worth: its name, its meaning, a value for each side, and what is set small below the value."""

    def seeds(side: Mapping[str, Any]) -> Text:
        return _same(", ".join(wording.percent_number(value) for value in side["top1_of_seeds"]))

    rows: list[tuple[Text, Text, _Show, _Show | None]] = [
        (
            Text("Accuracy", "正解率"),
            Text("with its 95 % interval", "95%信頼区間つき"),
            lambda side: wording.percent(side["top1"]),
            lambda side: wording.percent_range(side["top1_ci95"]),
        ),
        (
            Text("Balanced accuracy", "クラス平均の正解率"),
            Text("each class counts the same", "クラスごとに同じ重み"),
            lambda side: wording.percent(side["balanced_accuracy"]),
            None,
        ),
        (
            Text("Negative log-likelihood", "負の対数尤度（NLL）"),
            Text("smaller is better", "小さいほど良い"),
            lambda side: _same(wording.decimal(side["nll"])),
            None,
        ),
        (
            Text("Calibration error (ECE)", "較正誤差（ECE）"),
            Text("gap between stated probability and accuracy", "示した確率と正解率とのずれ"),
            lambda side: wording.percent(side["ece"]),
            None,
        ),
    ]
    if len(sides[0]["top1_of_seeds"]) > 1:
        rows.insert(1, (Text("Each seed", "シードごと"), Text("accuracy in %", "正解率（%）"), seeds, None))
    return [
        {
            "name": name,
            "meaning": meaning,
            "values": [show(side) for side in sides],
            "below": [below(side) for side in sides] if below else [],
        }
        for name, meaning, show, below in rows
    ]


def cost_rows(sides: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each measure of cost: its name and a value for each side."""
    rows: list[tuple[Text, _Show]] = [
        (Text("Parameters", "パラメータ数"), lambda side: wording.short_count(side["parameters"])),
        (Text("Multiply-adds an image", "1枚あたりの積和演算"), lambda side: wording.short_count(side["macs"])),
        (Text("Latency, median", "処理時間（中央値）"), lambda side: _same(f"{side['latency_p50_ms']:.2f} ms")),
        (Text("Latency, 95th percentile", "処理時間（95パーセンタイル）"), lambda side: _same(f"{side['latency_p95_ms']:.2f} ms")),
        (
            Text("Throughput", "スループット"),
            lambda side: Text(
                f"{side['images_per_second']:,.0f} images/s (batch {side['batch_size']})",
                f"{side['images_per_second']:,.0f}枚/秒（バッチ{side['batch_size']}）",
            ),
        ),
        (Text("Memory to answer", "推論時のメモリ"), lambda side: _same(wording.memory(side["memory_bytes"]))),
    ]
    if sides[0]["training_seconds"] is not None:
        rows.append((Text("Training, one run", "学習時間（1回）"), lambda side: wording.duration(side["training_seconds"])))
    return [{"name": name, "values": [show(side) for side in sides]} for name, show in rows]


def _same(text: str) -> Text:
    return Text(text, text)


def spoiled_rows(found: Mapping[str, list[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return a row for each corruption and strength: both accuracies and the difference with its interval."""
    names = {
        "noise": Text("Noise", "ノイズ"),
        "blur": Text("Blur", "ぼかし"),
        "shift": Text("Shift", "平行移動"),
        "drop_random": Text("Tiles dropped", "タイルの欠落"),
    }
    rows = []
    for corruption, levels in found.items():
        for level in levels[1:]:
            strength = f"{level['strength']:g}" if UNITS[corruption] == "deviation" else f"{100 * level['strength']:.3g} %"
            low, high = level["difference_ci95"]
            rows.append(
                {
                    "name": names[corruption],
                    "strength": strength,
                    "values": [wording.percent_number(value) for value in level["top1"]],
                    "difference": verdict.signed_number(level["difference"]),
                    "interval": verdict.points_range(low, high),
                    "clear": low > 0 or high < 0,
                }
            )
    return rows


def _candidates(sides: list[Mapping[str, Any]]) -> list[Candidate]:
    return [
        Candidate(side["label"], side["top1"], tuple(side["top1_ci95"]), side["latency_p50_ms"], side["latency_p95_ms"]) for side in sides
    ]


def _cost_lines(sides: list[Mapping[str, Any]], quantity: str) -> list[Line]:
    lines = []
    for side in sides:
        costs = side["cost_over_size"]
        values = [np.nan if cost[quantity] is None else cost[quantity] / (1e6 if quantity == "macs" else 1) for cost in costs]
        lines.append(Line(side["label"], np.array([cost["image_size_px"] for cost in costs], float), np.array(values, float)))
    return lines


def _robustness_figure(record: Mapping[str, Any], name: str, language: Language) -> Figure:
    levels = record["robustness"][name]
    strengths = np.array([level["strength"] for level in levels], float)
    lines = [Line(label, strengths, np.array([level["top1"][side] for level in levels])) for side, label in enumerate(record["labels"])]
    return robustness(name, UNITS[name], lines, chance=1 / max(1, record["num_classes"]), language=language)


def plain(value: Any) -> str:
    """Return a value of the environment in one line."""
    if isinstance(value, dict):
        return " · ".join(f"{name} {plain(inner)}" for name, inner in value.items() if inner is not None)
    return wording.MISSING if value is None else str(value)
