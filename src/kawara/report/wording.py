"""Numbers as people write them, in English and in Japanese."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

MISSING = "–"
_NO_BREAK = "\N{NO-BREAK SPACE}"


class Text(NamedTuple):
    """The same words in both languages."""

    en: str
    ja: str


def percent(share: float | None, *, digits: int = 1) -> Text:
    """Return a share in [0, 1] as "97.8 %" / "97.8%". What is less than all never reads as 100 %."""
    number = percent_number(share, digits=digits)
    return Text(number, number) if number == MISSING else Text(f"{number}{_NO_BREAK}%", f"{number}%")


def percent_number(share: float | None, *, digits: int = 1) -> str:
    """Return a share in [0, 1] in hundredths, without the sign: for columns whose head carries it."""
    if share is None or not math.isfinite(share):
        return MISSING
    while 0 < share < 1 and digits < 2 and float(f"{100 * share:.{digits}f}") in (0.0, 100.0):
        digits += 1
    return f"{100 * share if share >= 1 else min(100 * share, 100 - 0.1**digits):.{digits}f}"


def percent_range(bounds: Any) -> Text:
    """Return an interval of shares as "95.0–99.4 %"."""
    if bounds is None or any(bound is None or not math.isfinite(bound) for bound in bounds):
        return Text(MISSING, MISSING)
    low, high = (percent_number(bound) for bound in bounds)
    return Text(f"{low}–{high}{_NO_BREAK}%", f"{low}〜{high}%")


def decimal(value: float | None, digits: int = 3) -> str:
    """Return a plain number, "–" if there is none."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def decimal_range(bounds: Any, digits: int = 3) -> Text:
    """Return an interval of plain numbers."""
    if bounds is None or any(bound is None or not math.isfinite(bound) for bound in bounds):
        return Text(MISSING, MISSING)
    low, high = (decimal(bound, digits) for bound in bounds)
    return Text(f"{low}–{high}", f"{low}〜{high}")


def short_count(count: float | None) -> Text:
    """Return a large number with three figures: "1.23 million" / "123万"."""
    if count is None:
        return Text(MISSING, MISSING)
    return Text(
        _in_units(count, ((1e12, f"{_NO_BREAK}trillion"), (1e9, f"{_NO_BREAK}billion"), (1e6, f"{_NO_BREAK}million"))),
        _in_units(count, ((1e12, "兆"), (1e8, "億"), (1e4, "万"))),
    )


def duration(seconds: float | None) -> Text:
    """Return a time as its two largest units: "4 min 12 s" / "4分12秒"."""
    if seconds is None or not math.isfinite(seconds):
        return Text(MISSING, MISSING)
    if seconds < 60:
        return Text(f"{seconds:.1f}{_NO_BREAK}s", f"{seconds:.1f}秒")
    whole = round(seconds)
    if whole < 3600:
        return Text(f"{whole // 60}{_NO_BREAK}min {whole % 60}{_NO_BREAK}s", f"{whole // 60}分{whole % 60}秒")
    return Text(f"{whole // 3600}{_NO_BREAK}h {whole % 3600 // 60}{_NO_BREAK}min", f"{whole // 3600}時間{whole % 3600 // 60}分")


def memory(num_bytes: float | None) -> str:
    """Return bytes as "512 MB" or "1.4 GB" (powers of ten)."""
    if num_bytes is None:
        return MISSING
    return f"{num_bytes / 1e9:.1f}{_NO_BREAK}GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f}{_NO_BREAK}MB"


def split_name(split: str) -> Text:
    """Return the name of a part of the data as it stands before "images" / 画像."""
    return {
        "train": Text("training", "学習"),
        "val": Text("validation", "検証"),
        "test": Text("test", "テスト"),
        "all": Text("labelled", "ラベル付き"),
    }.get(split, Text(split, split))


def _in_units(count: float, units: tuple[tuple[float, str], ...]) -> str:
    for size, name in units:
        if count >= size:
            return f"{_three_figures(count / size)}{name}"
    return f"{count:,.0f}"


def _three_figures(value: float) -> str:
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f}"
