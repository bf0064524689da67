"""Numbers as they stand on the pages."""

from __future__ import annotations

import math

import pytest

from kawara.report import wording


@pytest.mark.parametrize(
    ("share", "number"),
    [(0.978, "97.8"), (1.0, "100.0"), (0.0, "0.0"), (0.9996, "99.96"), (0.999999, "99.99"), (0.0004, "0.04"), (None, "–"), (math.nan, "–")],
)
def test_percent_never_rounds_to_a_false_hundred(share: float | None, number: str) -> None:
    assert wording.percent_number(share) == number


def test_percent_in_both_languages() -> None:
    assert wording.percent(0.978) == ("97.8\N{NO-BREAK SPACE}%", "97.8%")
    assert wording.percent(None) == ("–", "–")
    assert wording.percent_range([0.95, 0.994]) == ("95.0–99.4\N{NO-BREAK SPACE}%", "95.0〜99.4%")
    assert wording.percent_range([None, None]) == ("–", "–")


@pytest.mark.parametrize(
    ("count", "english", "japanese"),
    [
        (192, "192", "192"),
        (412_362, "412,362", "41.2万"),
        (5_717_416, "5.72 million", "572万"),
        (86_567_656, "86.6 million", "8,657万"),
        (17_600_000_000, "17.6 billion", "176億"),
    ],
)
def test_large_counts(count: int, english: str, japanese: str) -> None:
    text = wording.short_count(count)
    assert text.en.replace("\N{NO-BREAK SPACE}", " ") == english
    assert text.ja == japanese


@pytest.mark.parametrize(
    ("seconds", "english", "japanese"),
    [(4.26, "4.3 s", "4.3秒"), (252.4, "4 min 12 s", "4分12秒"), (7260, "2 h 1 min", "2時間1分"), (None, "–", "–")],
)
def test_durations(seconds: float | None, english: str, japanese: str) -> None:
    text = wording.duration(seconds)
    assert text.en.replace("\N{NO-BREAK SPACE}", " ") == english
    assert text.ja == japanese


def test_memory() -> None:
    assert wording.memory(5.1e8) == "510\N{NO-BREAK SPACE}MB"
    assert wording.memory(2.34e9) == "2.3\N{NO-BREAK SPACE}GB"
    assert wording.memory(None) == "–"
