"""The page of an ablation says in both languages what the numbers say, and needs nothing from outside."""

from __future__ import annotations

import re

import pytest

from kawara.plots.forest import Difference, forest
from kawara.plots.style import CLAY, MUTED, SLATE, to_svg
from kawara.report.ablation_page import DECISIONS, ablation_page, ablation_rows, ablation_sentence
from kawara.report.tables import ablation_table


def row(name: str, difference: float, interval: tuple[float, float], decision: str) -> dict:
    return {
        "without": name, "description": f"<i>{name}</i>", "description_ja": f"{name}の日本語", "arxiv": "1710.09412",
        "explanation": f"What {name} does.", "explanation_ja": f"{name}のはたらき。", "settings": {f"task.{name}": 0.0},
        "top1": 0.9 + difference, "training_seconds": 50.0, "config_digest": f"digest-{name}",
        "verdict": {"difference": difference, "difference_ci95": list(interval), "decision": decision},
    }  # fmt: skip


def record(*rows: dict) -> dict:
    return {
        "data": "photos", "split": "test", "num_images": 900, "num_classes": 10,
        "training": {"recipe": "small", "length": "3 epochs", "image_size": 32, "seeds": [0, 1]},
        "complete": {"model": "vit_femto_4", "top1": 0.9, "top1_ci95": [0.88, 0.92], "training_seconds": 61.0, "config_digest": "whole"},
        "rows": list(rows), "environment": {"python": "3"},
    }  # fmt: skip


MIXUP = row("mixup", -0.05, (-0.07, -0.03), "second")
CROP = row("crop", 0.03, (0.01, 0.05), "first")
FLIP = row("flip", 0.001, (-0.01, 0.012), "no difference")


def test_the_page_is_whole_and_escaped():
    page = ablation_page(record(MIXUP, CROP, FLIP))
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<i>" not in page
    for words in (
        "What crop does.",
        "cropのはたらき。",
        "arXiv 1710.09412",
        "−5.0",
        "−7.0 to −3.0",
        "task.flip=0.0",
        "digest-flip",
        "−18%",
    ):
        assert words in page
    assert page.count('lang="ja"') == page.count('lang="en"') - 1 + page.count('<html lang="ja"')  # but for the root


def test_the_sentence_names_what_is_known():
    sentence = ablation_sentence(record(MIXUP, CROP, FLIP))
    assert sentence.en == "Worse without: <i>mixup</i>. Better without: <i>crop</i>"
    assert sentence.ja == "抜くと悪くなるもの：mixupの日本語。抜くと良くなるもの：cropの日本語"
    many = [row(f"i{number}", 0.01 * number, (0.001, 0.1), "first") for number in range(1, 6)]
    assert ablation_sentence(record(*many)).ja == "抜くと良くなるもの：i5の日本語、i4の日本語、i3の日本語ほか2つ"
    assert ablation_sentence(record(*many)).en.endswith("<i>i3</i> and 2 more")
    assert "No ingredient" in ablation_sentence(record(FLIP)).en


@pytest.mark.parametrize("decision", list(DECISIONS))
def test_every_verdict_has_its_words(decision):
    found = record(row("mixup", 0.0, (-0.1, 0.1), decision))
    assert ablation_rows(found)[0]["decision"] == DECISIONS[decision]
    assert ablation_rows(found)[0]["is_known"] == (decision in ("first", "second"))
    assert ablation_table(found).row_count == 2


def test_colour_says_whether_the_interval_leaves_out_zero():
    rows = [Difference("a", -0.05, (-0.07, -0.03)), Difference("b", 0.001, (-0.01, 0.012)), Difference("c", 0.03, (0.01, 0.05))]
    axes = forest(rows).axes[0]
    drawn = [line for line in axes.lines if len(line.get_xdata()) == 2][1:]  # the first is the line at zero
    assert [line.get_color() for line in drawn] == [CLAY, MUTED, SLATE]
    assert list(drawn[0].get_xdata()) == pytest.approx([-7, -3])
    assert axes.get_xlim()[0] < -7
    assert "nothing compared" in to_svg(forest([]))
    assert "比較がありません" in to_svg(forest([], language="ja"))
