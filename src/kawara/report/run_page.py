"""The page of a training run: how good the model is, how sure that is, where it errs, what it cost and how to use it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kawara.files import write_text
from kawara.plots.calibration import reliability
from kawara.plots.confusion import confusion
from kawara.plots.curves import PANELS, training_curve
from kawara.plots.style import Language
from kawara.report import wording
from kawara.report.page import figure_source, image_source, render
from kawara.report.wording import Text

LANGUAGES: tuple[Language, ...] = ("en", "ja")
MAX_SAMPLES = 12
MAX_SKIPPED_SHOWN = 200
MAX_CLASSES_OPEN = 20
MAX_CLASSES_SHOWN = 1000
NUM_CONFUSIONS = 8
CALIBRATED_WITHIN = 0.01


@dataclass(frozen=True)
class Sample:
    """One image with what it is and what the model said. `image` is (H, W, C) uint8, `score` the probability of `predicted`."""

    image: NDArray[np.uint8]
    key: str
    label: str
    predicted: str
    score: float


@dataclass(frozen=True)
class RunSummary:
    """Everything that the page tells. Accuracies, recalls and scores are fractions in [0, 1].

    `metrics` has num_images, top1, top5, balanced_accuracy, nll and ece, each with its `_ci95` [low, high]; what is missing or
    None is left out. `confusion` is (K, K) with true classes as rows; `per_class` has the keys class, num_images, recall,
    precision and mostly_confused_with; `confidence` and `right` are (n,). `selected_on_evaluated_split` says that the images
    measured on also chose which weights were kept.
    """

    title: str
    data_description: str
    split_sizes: dict[str, int]
    skipped: list[tuple[str, str]]
    class_names: tuple[str, ...]
    model_name: str
    num_parameters: int
    macs: int | None
    image_size: tuple[int, int]
    recipe: str
    reason: str
    config_yaml: str
    environment: dict[str, Any]
    records: list[dict[str, Any]]
    evaluated_split: str
    metrics: dict[str, Any]
    confusion: NDArray[np.integer[Any]]
    per_class: list[dict[str, Any]]
    confidence: NDArray[np.floating[Any]]
    right: NDArray[Any]
    mistakes: list[Sample]
    doubtful: list[Sample]
    correct: list[Sample]
    seconds: float | None
    images_per_second: float | None
    peak_memory_bytes: float | None
    model_path: str
    commands: list[str]
    selected_on_evaluated_split: bool = False
    reason_ja: str | None = None


def write_run_page(path: str | Path, summary: RunSummary) -> None:
    """Write the page, atomically: one HTML file that needs nothing else."""
    write_text(path, run_page(summary))


def run_page(summary: RunSummary) -> str:
    """Return the page as HTML."""
    num_classes = len(summary.class_names)
    rows = summary.per_class if num_classes <= MAX_CLASSES_OPEN else sorted(summary.per_class, key=_worst_first)
    return render(
        "run_page.html",
        summary=summary,
        wording=wording,
        num_classes=num_classes,
        split=wording.split_name(summary.evaluated_split),
        splits=[(wording.split_name(name), size) for name, size in summary.split_sizes.items()],
        headline=_headline(summary),
        ruler=_ruler(summary),
        metrics=_metric_rows(summary),
        epochs=next((record["epoch"] for record in reversed(summary.records) if record.get("epoch") is not None), None),
        calibration=_calibration_sentence(summary),
        remarks=[Text(record["en"], record["ja"]) for record in summary.records if record.get("event") == "remark"],
        confusions=_commonest_confusions(summary.confusion, summary.class_names),
        rows=rows[:MAX_CLASSES_OPEN],
        more_rows=rows[MAX_CLASSES_OPEN:MAX_CLASSES_SHOWN],
        skipped=summary.skipped[:MAX_SKIPPED_SHOWN],
        groups=_sample_groups(summary),
        environment=[(name, _plain(value)) for name, value in summary.environment.items()],
        model_shell=shlex.quote(summary.model_path),
        model_python=repr(summary.model_path),
        curves=[_in_both_languages(training_curve(summary.records, panel, language=each) for each in LANGUAGES) for panel in PANELS],
        confusion=_in_both_languages(confusion(summary.confusion, summary.class_names, language=each) for each in LANGUAGES),
        reliability=_in_both_languages(reliability(summary.confidence, summary.right, language=each) for each in LANGUAGES),
    )


def _in_both_languages(figures: Iterable[Figure]) -> dict[Language, dict[str, Any]]:
    return {language: figure_source(figure) for language, figure in zip(LANGUAGES, figures)}


def _headline(summary: RunSummary) -> dict[str, Text]:
    """Return the sentence of the page, and its interval to be set smaller."""
    metrics = summary.metrics
    share = wording.percent(metrics.get("top1"))
    split = wording.split_name(summary.evaluated_split)
    count = metrics.get("num_images", len(summary.right))
    interval = wording.percent_range(metrics.get("top1_ci95"))
    return {
        "sentence": Text(f"{share.en} of {count:,} {split.en} images right", f"{split.ja}画像{count:,}枚のうち{share.ja}が正解"),
        "interval": Text(f"95\N{NO-BREAK SPACE}% interval {interval.en}", f"95%信頼区間 {interval.ja}"),
    }


def _ruler(summary: RunSummary) -> dict[str, Any]:
    """Return what stands on the scale from 0 to 100 %: the accuracy, its interval, and what no knowledge at all would give."""
    per_true_class = np.asarray(summary.confusion).sum(axis=1)
    total = int(per_true_class.sum())
    chance = 1 / max(1, len(summary.class_names))
    commonest = float(per_true_class.max() / total) if total else None
    if commonest is not None and commonest - chance < 0.005:
        commonest = None
    return {
        "top1": summary.metrics.get("top1"),
        "interval": summary.metrics.get("top1_ci95"),
        "chance": chance,
        "chance_text": wording.percent(chance),
        "commonest": commonest,
        "commonest_text": wording.percent(commonest),
    }


def _metric_rows(summary: RunSummary) -> list[dict[str, Text]]:
    metrics, num_classes = summary.metrics, len(summary.class_names)
    even = wording.decimal(math.log(max(1, num_classes)))
    rows: list[tuple[str, Text, Text]] = [
        ("top1", Text("Accuracy (top-1)", "正解率（Top-1）"), Text("the likeliest class is the true one", "最も確率の高いクラスが正解")),
        ("top5", Text("Top-5", "Top-5"), Text("the true class is among the likeliest five", "上位5クラスの中に正解がある")),
        (
            "balanced_accuracy",
            Text("Balanced accuracy", "クラス平均の正解率"),
            Text("mean over the classes; each counts the same", "クラスごとの正解率の平均（枚数によらず同じ重み）"),
        ),
        (
            "nll",
            Text("Negative log-likelihood", "負の対数尤度（NLL）"),
            Text(f"nats, smaller is better; guessing evenly gives {even}", f"単位はnat、小さいほど良い。均等な当て推量では{even}"),
        ),
        (
            "ece",
            Text("Calibration error (ECE)", "較正誤差（ECE）"),
            Text("mean gap between stated probability and accuracy", "示した確率と実際の正解率とのずれの平均"),
        ),
    ]
    shown = []
    for key, name, meaning in rows:
        value, bounds = metrics.get(key), metrics.get(f"{key}_ci95")
        if value is None or (key == "top5" and num_classes <= 5):
            continue
        if key == "nll":
            number = wording.decimal(value)
            shown.append({"name": name, "value": Text(number, number), "interval": wording.decimal_range(bounds), "meaning": meaning})
        else:
            shown.append({"name": name, "value": wording.percent(value), "interval": wording.percent_range(bounds), "meaning": meaning})
    return shown


def _calibration_sentence(summary: RunSummary) -> Text | None:
    """Return whether the model promises too much, too little or what it keeps."""
    if len(summary.confidence) == 0:
        return None
    said, kept = float(np.mean(summary.confidence)), float(np.mean(summary.right))
    said_text, kept_text = wording.percent(said), wording.percent(kept)
    if abs(said - kept) <= CALIBRATED_WITHIN:
        verdict = Text("on the whole the two agree.", "全体としてよく一致しています。")
    elif said > kept:
        verdict = Text("it promises more than it keeps.", "自信過剰の傾向があります。")
    else:
        verdict = Text("it is better than it claims.", "控えめな傾向があります。")
    return Text(
        f"On average the model states {said_text.en} and is right in {kept_text.en}: {verdict.en}",
        f"モデルが示した確率は平均{said_text.ja}、実際の正解率は{kept_text.ja}で、{verdict.ja}",
    )


def _commonest_confusions(matrix: NDArray[np.integer[Any]], class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the pairs (true, predicted) with most images, and their share of the true class."""
    wrong = np.array(matrix)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:NUM_CONFUSIONS]
    pairs = []
    for row, column in zip(*np.unravel_index(order, wrong.shape)):
        if wrong[row, column] > 0:
            share = wording.percent_number(wrong[row, column] / np.asarray(matrix)[row].sum())
            pairs.append({"true": class_names[row], "predicted": class_names[column], "count": int(wrong[row, column]), "share": share})
    return pairs


def _sample_groups(summary: RunSummary) -> list[dict[str, Any]]:
    """Return the groups of images that a person looks at first."""
    groups = [
        (
            summary.mistakes,
            Text("Most confident mistakes", "自信をもって間違えた画像"),
            Text(
                "Look here first: sometimes it is the label that is wrong.",
                "まずここを確認してください。ラベルの方が誤っていることもあります。",
            ),
        ),
        (
            summary.doubtful,
            Text("Most doubtful answers", "判断に迷った画像"),
            Text("The images that the model was least sure about.", "モデルの確信度が最も低かった画像です。"),
        ),
        (
            summary.correct,
            Text("Right answers", "正解した画像"),
            Text("For comparison.", "比較のための例です。"),
        ),
    ]
    return [
        {"title": title, "note": note, "samples": [_sample_view(sample) for sample in samples[:MAX_SAMPLES]]}
        for samples, title, note in groups
        if samples
    ]


def _sample_view(sample: Sample) -> dict[str, Any]:
    return {
        **image_source(sample.image),
        "key": sample.key,
        "label": sample.label,
        "predicted": sample.predicted,
        "is_right": sample.label == sample.predicted,
        "score": wording.percent(sample.score),
    }


def _worst_first(row: dict[str, Any]) -> float:
    return 2.0 if row["recall"] is None else row["recall"]


def _plain(value: Any) -> str:
    """Return a value of the environment in one line."""
    if isinstance(value, dict):
        return " · ".join(f"{name} {_plain(inner)}" for name, inner in value.items() if inner is not None)
    return wording.MISSING if value is None else str(value)
