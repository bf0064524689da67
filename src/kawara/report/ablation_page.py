"""The page of an ablation: what the recipe loses or gains without each ingredient, how sure that is, and what each ingredient does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kawara.files import write_text
from kawara.plots.forest import Difference, forest
from kawara.plots.style import Language
from kawara.report import wording
from kawara.report.comparison_page import LANGUAGES, plain
from kawara.report.page import figure_source, render
from kawara.report.verdict import points_range, signed_number
from kawara.report.wording import Text

MOST_NAMED = 3
DECISIONS = {
    "first": Text("better without", "抜いたほうが良い"),
    "second": Text("worse without", "抜くと悪くなる"),
    "no difference": Text("no difference", "差なし"),
    "cannot know: one seed": Text("one seed cannot tell", "1 シードでは不明"),
    "cannot know: seeds differ": Text("seeds differ too much", "シード間の差が大きい"),
    "too few images": Text("too few images", "画像が不足"),
}


def write_ablation_page(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write the page, atomically: one HTML file that needs nothing else. `record` is the ablation as docs/json.md has it."""
    write_text(path, ablation_page(record))


def ablation_page(record: Mapping[str, Any]) -> str:
    """Return the page as HTML."""
    return render(
        "ablation_page.html",
        record=record,
        sentence=ablation_sentence(record),
        rows=ablation_rows(record),
        complete={
            "top1": wording.percent(record["complete"]["top1"]),
            "interval": wording.percent_range(record["complete"]["top1_ci95"]),
            "time": wording.duration(record["complete"]["training_seconds"]),
        },
        split=wording.split_name(record["split"]),
        forest={language: figure_source(_forest(record, language)) for language in LANGUAGES},
        environment=[(name, plain(value)) for name, value in record["environment"].items()],
    )


def ablation_sentence(record: Mapping[str, Any]) -> Text:
    """Return which ingredients are known to help and which to harm, the greatest differences by name, or that none is."""
    parts = []
    for decision, words in (
        ("second", Text("Worse without", "抜くと悪くなるもの")),
        ("first", Text("Better without", "抜くと良くなるもの")),
    ):
        found = [row for row in record["rows"] if row["verdict"]["decision"] == decision]
        found.sort(key=lambda row: -abs(row["verdict"]["difference"]))
        named, more = found[:MOST_NAMED], len(found) - MOST_NAMED
        if found:
            en, ja = ", ".join(row["description"] for row in named), "、".join(row["description_ja"] for row in named)
            rest = Text(f" and {more} more", f"ほか{more}つ") if more > 0 else Text("", "")
            parts.append(Text(f"{words.en}: {en}{rest.en}", f"{words.ja}：{ja}{rest.ja}"))
    if not parts:
        return Text("No ingredient is known to help or to harm", "役立つとも害になるとも言える要素はありませんでした")
    return Text(". ".join(part.en for part in parts), "。".join(part.ja for part in parts))


def ablation_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each ingredient: its names, what it does, and what the recipe is worth and costs without it."""
    complete_seconds = record["complete"]["training_seconds"]
    return [
        {
            "name": Text(row["description"], row["description_ja"]),
            "explanation": Text(row["explanation"], row["explanation_ja"]),
            "arxiv": row["arxiv"],
            "top1": wording.percent(row["top1"]),
            "difference": signed_number(row["verdict"]["difference"]),
            "interval": points_range(*row["verdict"]["difference_ci95"]),
            "decision": DECISIONS[row["verdict"]["decision"]],
            "is_known": row["verdict"]["decision"] in ("first", "second"),
            "time": wording.duration(row["training_seconds"]),
            "slower": f"{row['training_seconds'] / complete_seconds - 1:+.0%}".replace("-", "−"),
        }
        for row in record["rows"]
    ]


def _forest(record: Mapping[str, Any], language: Language) -> Figure:
    """Draw the rows from the greatest loss to the greatest gain."""
    rows = sorted(record["rows"], key=lambda row: row["verdict"]["difference"])
    differences = [
        Difference(
            row["description" if language == "en" else "description_ja"],
            row["verdict"]["difference"],
            (row["verdict"]["difference_ci95"][0], row["verdict"]["difference_ci95"][1]),
        )
        for row in rows
    ]
    worse, better = (getattr(DECISIONS[decision], language) for decision in ("second", "first"))
    return forest(differences, lower=f"← {worse}", higher=f"{better} →", language=language)
