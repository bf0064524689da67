"""The page of a check: how many files can be used, and every finding with pictures, copies side by side.

Pictures are decoded and compressed anew, so nothing of a file but its pixels gets onto the page; names are escaped by the template.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kawara.data.gate import Copies, Finding, Gate, Item, Severity
from kawara.files import write_text
from kawara.report import wording
from kawara.report.check_wording import NEAR_SEARCH, SEVERITIES, WORDS
from kawara.report.page import image_source, render
from kawara.report.wording import Text

MAX_PICTURES = 8
MAX_COPIES_SHOWN = 24
MAX_MEMBERS_SHOWN = 4
MAX_LINES_SHOWN = 500

Picture = Callable[[str], NDArray[np.uint8] | None]
"""Gives the pixels of the image with a path, (H, W, C) uint8, or None."""

_ORDER: tuple[Severity, ...] = ("error", "warning", "note")
_PICTURED = (
    "label-suspect",
    *("tiny", "blank", "rotated", "cmyk", "more-than-8-bits", "palette", "transparent", "grey", "animated", "several-pages"),
    "wrong-suffix",
)


@dataclass(frozen=True)
class CheckSummary:
    """Everything that the page tells. `splits` gives the number of images of each part."""

    data: str
    description: str
    splits: dict[str, int]
    gate: Gate
    seconds: float


def write_check_page(path: str | Path, summary: CheckSummary, picture: Picture) -> None:
    """Write the page, atomically: one HTML file that needs nothing else."""
    write_text(path, check_page(summary, picture))


def check_page(summary: CheckSummary, picture: Picture) -> str:
    """Return the page as HTML."""
    gate = summary.gate
    return render(
        "check_page.html",
        summary=summary,
        gate=gate,
        wording=wording,
        headline=headline(gate),
        splits=[(wording.split_name(name), size) for name, size in summary.splits.items()],
        near_search=NEAR_SEARCH[gate.near_search],
        parts=[
            {"key": severity, "title": _TITLES[severity], "note": _NOTES[severity], "findings": [_view(each, picture) for each in found]}
            for severity in _ORDER
            if (found := gate.of(severity))
        ],
        severities=SEVERITIES,
        overview=[(finding, WORDS[finding.kind]) for finding in gate.findings],
        data_shell=shlex.quote(summary.data),
    )


def headline(gate: Gate) -> Text:
    """Return the sentence of the page."""
    counts = gate.counts()
    if counts["error"] == counts["warning"] == 0:
        return Text(f"All {gate.num_images:,} images can be used", f"{gate.num_images:,}枚すべて使えます")
    return Text(
        f"{_counted(counts['error'], 'error')} and {_counted(counts['warning'], 'warning')}",
        f"エラー {counts['error']:,}件、警告 {counts['warning']:,}件",
    )


_TITLES: dict[Severity, Text] = {
    "error": Text("Errors", "エラー"),
    "warning": Text("Warnings", "警告"),
    "note": Text("Notes", "参考"),
}
_NOTES: dict[Severity, Text] = {
    "error": Text(
        "These files are quarantined: no training, accuracy or statistic counts them, and nothing takes their place.",
        "これらのファイルは隔離されます。学習にも正解率にも数えず、他の画像で置き換えることもありません。",
    ),
    "warning": Text(
        "These images are used, but the result may mean less than it seems.",
        "これらの画像は使いますが、結果の数値を額面どおりに受け取れなくなるおそれがあります。",
    ),
    "note": Text("Nothing is wrong with these; this is what is done about them.", "問題ではありません。次のように処理します。"),
}


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def _view(finding: Finding, picture: Picture) -> dict[str, Any]:
    is_pictured = finding.kind in _PICTURED
    return {
        "finding": finding,
        "words": WORDS[finding.kind],
        "tiles": [tile for item in finding.items[:MAX_PICTURES] if (tile := _tile(item, picture))] if is_pictured else [],
        "copies": [_copies_view(copies, picture) for copies in finding.copies[:MAX_COPIES_SHOWN]],
        "lines": [] if is_pictured and finding.count <= MAX_PICTURES else finding.items[:MAX_LINES_SHOWN],
        "more_copies": finding.copies[MAX_COPIES_SHOWN : MAX_COPIES_SHOWN + MAX_LINES_SHOWN],
        "is_folded": is_pictured or len(finding.items) > 20,
    }


def _tile(item: Item, picture: Picture) -> dict[str, Any] | None:
    pixels = picture(item.path)
    return None if pixels is None else {"image": image_source(pixels), "path": item.path, "detail": item.detail}


def _copies_view(copies: Copies, picture: Picture) -> dict[str, Any]:
    members = []
    for member in copies.members[:MAX_MEMBERS_SHOWN]:
        pixels = picture(member.path)
        image = None if pixels is None else image_source(pixels)
        members.append({"member": member, "image": image, "split": wording.split_name(member.split)})
    return {
        "copies": copies,
        "members": members,
        "more": len(copies.members) - len(members),
        "correlation": wording.decimal(copies.correlation),
    }
