"""A comparison, an ablation and a check as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kawara.data.gate import Copies, Finding, Gate
from kawara.report import wording
from kawara.report.ablation_page import DECISIONS
from kawara.report.check_wording import WORDS
from kawara.report.comparison_page import cost_rows, spoiled_rows, worth_rows
from kawara.report.verdict import points_range, signed_number


def comparison_tables(record: Mapping[str, Any]) -> list[Table]:
    """Return what each side is worth and costs, and how it bears spoiled images."""
    labels = [escape(label) for label in record["labels"]]
    both = Table("", *labels, box=None, pad_edge=False)
    for row in worth_rows(record["sides"]):
        below = row["below"] or [None] * len(labels)
        both.add_row(
            row["name"].en, *(value.en if small is None else f"{value.en} ({small.en})" for value, small in zip(row["values"], below))
        )
    for row in cost_rows(record["sides"]):
        both.add_row(row["name"].en, *(value.en for value in row["values"]))
    spoiled = Table("images right (%)", "strength", *labels, "difference", "95 % interval", box=None, pad_edge=False)
    for row in spoiled_rows(record["robustness"]):
        spoiled.add_row(row["name"].en, row["strength"], *row["values"], row["difference"], row["interval"].en)
    return [both, spoiled]


def ablation_table(record: Mapping[str, Any]) -> Table:
    """Return a row for the complete recipe and one for each ingredient left out."""
    table = Table("", "top-1", "difference", "95 % interval", "", "time a run", "configuration", box=None, pad_edge=False)
    complete = record["complete"]
    time = wording.duration(complete["training_seconds"]).en
    table.add_row("complete recipe", wording.percent(complete["top1"]).en, "", "", "", time, complete["config_digest"])
    for row in record["rows"]:
        verdict = row["verdict"]
        table.add_row(
            f"without {row['description']}",
            wording.percent(row["top1"]).en,
            signed_number(verdict["difference"]),
            points_range(*verdict["difference_ci95"]).en,
            DECISIONS[verdict["decision"]].en,
            f"{wording.duration(row['training_seconds']).en} ({row['training_seconds'] / complete['training_seconds'] - 1:+.0%})",
            row["config_digest"],
        )
    return table


def findings_table(gate: Gate) -> Table:
    """Return a row for each kind of finding: how serious, what, how many, and what is done about it."""
    table = Table("", "what", "count", "what is done", "for instance", box=None, pad_edge=False)
    for finding in gate.findings:
        words = WORDS[finding.kind]
        table.add_row(
            finding.severity, words.title.en, f"{finding.count:,}", words.treatment.en, Text(finding_example(finding)),
        )  # fmt: skip
    return table


def finding_example(finding: Finding) -> str:
    """Return the first of the finding in words: a path with its reason, or the copies."""
    if finding.items:
        item = finding.items[0]
        return f"{item.path} ({item.detail})" if item.detail else item.path
    return copies_text(finding.copies[0])


def copies_text(copies: Copies) -> str:
    """Return "a.jpg (cat, train) = b.jpg (dog, test)", with ≈ for near-duplicates."""
    sign = " = " if copies.correlation is None else " ≈ "
    text = sign.join(f"{member.path} ({member.class_name}, {member.split})" for member in copies.members)
    return text + ", mirrored" * copies.is_mirrored
