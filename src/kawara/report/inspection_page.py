"""The page of an inspection: what a model answers, what it attends to, what its layers hold, and whether it is local or global.

DIR/report.html     the page, in both languages; needs nothing else
DIR/figures/        every figure as PNG, in one of them
DIR/numbers/        what each figure was drawn from: NAME.json, and NAME.npz with its long arrays
DIR/inspection.json  the outcome in short: what `--json` prints
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kawara.plots.overlay import overlay, thumbnail
from kawara.plots.style import Language
from kawara.report import wording
from kawara.report.exhibits import Section, publish
from kawara.report.page import LARGEST_IMAGE_PX, image_source, render
from kawara.report.verdicts import Verdict, headline
from kawara.report.wording import Text

OUTCOMES = {
    "supported": Text("supported", "支持"),
    "contradicted": Text("contradicted", "否定"),
    "open": Text("open", "判定なし"),
}
MAX_SKIPPED_SHOWN = 200


@dataclass(frozen=True)
class ModelFacts:
    """What a model is, in short."""

    name: str
    path: str
    family: str
    num_parameters: int
    macs: int | None
    image_size: tuple[int, int]
    num_classes: int
    num_blocks: int | None
    num_heads: int | None
    tokens: Text | None


@dataclass(frozen=True)
class Answer:
    """One photo, (H, W, C) uint8, with the first guesses of the model, the true class where it is known, and a map (h, w)."""

    image: NDArray[np.uint8]
    key: str
    guesses: tuple[tuple[str, float], ...]
    label: str | None
    map: NDArray[np.floating] | None


@dataclass(frozen=True)
class AnswerGroup:
    """Answers of one kind: those that a person looks at first come first."""

    title: Text
    note: Text
    answers: list[Answer]


@dataclass(frozen=True)
class InspectionSummary:
    """Everything that the page tells."""

    models: list[ModelFacts]
    images: Text
    groups: list[AnswerGroup]
    map_method: Text | None
    sections: list[Section]
    verdicts: list[Verdict]
    skipped: list[tuple[str, str]]
    seconds: float
    command: str


def write_inspection(
    folder: Path, summary: InspectionSummary, *, language: Language | None, progress: Callable[[int, int, str], None]
) -> list[str]:
    """Write page, figures and numbers into an empty folder; return the names of the figures.

    `language` is that of the PNG files and the one the page opens in; None is English files and the language of the reader.
    """
    for name in ("figures", "numbers"):
        (folder / name).mkdir()
    total = sum(len(section.exhibits) for section in summary.sections)
    done = 0
    sections, names = [], []
    for section in summary.sections:
        drawn = []
        for exhibit in section.exhibits:
            drawn.append(publish(exhibit, folder, language or "en"))
            names.append(exhibit.name)
            done += 1
            progress(done, total, "")
        sections.append({"section": section, "open": _of(drawn, False), "folded": _of(drawn, True)})
    page = render(
        "inspection_page.html",
        summary=summary,
        wording=wording,
        headline=headline(summary.verdicts, summary.models[0].name),
        groups=[_group_view(group) for group in summary.groups],
        sections=sections,
        outcomes=OUTCOMES,
        skipped=summary.skipped[:MAX_SKIPPED_SHOWN],
        opens_in=language,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    return names


def _of(drawn: Sequence[Any], folded: bool) -> list[Any]:
    return [each for each in drawn if each.exhibit.folded == folded]


def _group_view(group: AnswerGroup) -> dict[str, Any]:
    return {"title": group.title, "note": group.note, "answers": [_answer_view(answer) for answer in group.answers]}


def _answer_view(answer: Answer) -> dict[str, Any]:
    (first, score), *others = answer.guesses or ((None, None),)
    mapped = None
    if answer.map is not None:
        picture = thumbnail(answer.image, LARGEST_IMAGE_PX)
        mapped = image_source(overlay(picture, answer.map))
    return {
        "image": image_source(answer.image),
        "map": mapped,
        "key": answer.key,
        "name": Path(answer.key).name,
        "label": answer.label,
        "predicted": first,
        "score": wording.percent(score) if score is not None else None,
        "others": [(name, wording.percent(value)) for name, value in others],
        "is_right": answer.label is None or answer.label == first,
    }
