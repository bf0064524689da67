"""The page of a comparison says in both languages what the numbers say, and needs nothing from outside."""

from __future__ import annotations

import re

import pytest

from kawara.plots.lines import Line
from kawara.plots.style import to_svg
from kawara.plots.tradeoff import Candidate, cost_over_size, pareto
from kawara.report.comparison_page import comparison_page
from kawara.report.tables import comparison_tables
from kawara.report.verdict import p_value, points, signed_number, verdict_explanation, verdict_sentence


def side(label: str, top1: float) -> dict:
    return {
        "label": label,
        "model": label,
        "config": {"depth": 2},
        "config_digest": "abc",
        "seeds": [0, 1],
        "files": [f"{label}/model.safetensors"],
        "top1": top1,
        "top1_ci95": [top1 - 0.02, top1 + 0.02],
        "top1_of_seeds": [top1 - 0.01, top1 + 0.01],
        "balanced_accuracy": top1,
        "nll": 0.3,
        "ece": 0.02,
        "training_seconds": 61.0,
        "training_images_per_second": 900.0,
        "parameters": 1_200_000,
        "macs": 34_000_000,
        "latency_p50_ms": 1.5,
        "latency_p95_ms": 1.9,
        "images_per_second": 4321.0,
        "batch_size": 32,
        "memory_bytes": None,
        "cost_over_size": [{"image_size_px": 32, "macs": 1_000_000, "ms": 1.0}, {"image_size_px": 64, "macs": 5_000_000, "ms": None}],
    }


def record(decision: str = "first", difference: float = 0.03, interval: tuple[float, float] = (0.01, 0.05), compared: str = "ways") -> dict:
    return {
        "compared": compared, "data": "photos", "split": "test", "num_images": 900, "num_classes": 10, "num_spoiled": 500,
        "labels": ["<b>vit</b>", "cnn"],
        "verdict": {
            "decision": decision, "difference": difference, "difference_ci95": list(interval), "p": 0.01, "disagreement": 0.1,
            "num_images": 900, "num_seeds": [2, 2], "images_needed": {"0.01": 7841, "0.02": 1954},
        },
        "mcnemar": [{"seed": 0, "only_first": 40, "only_second": 20, "p": 0.012}, {"seed": 1, "only_first": 9, "only_second": 8, "p": 0.8}],
        "sides": [side("<b>vit</b>", 0.93), side("cnn", 0.9)],
        "robustness": {
            "noise": [
                {"strength": strength, "top1": [0.9 - strength, 0.8], "difference": 0.1, "difference_ci95": [0.05, 0.15]}
                for strength in (0.0, 0.2)
            ],
            "drop_random": [{"strength": 0.25, "top1": [0.5, 0.4], "difference": 0.1, "difference_ci95": [-0.05, 0.2]}] * 2,
        },
        "threads": 1, "environment": {"python": "3", "packages": {"torch": "2"}},
        "training": {"recipe": "small", "length": "3 epochs", "image_size": 32, "seeds": [0, 1]},
        "match": {"by": "params", "mismatch": 0.004},
    }  # fmt: skip


def test_the_page_is_whole_and_escaped():
    page = comparison_page(record())
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<b>vit</b>" not in page.replace("kawara<b>瓦</b>", "")
    assert "&lt;b&gt;vit&lt;/b&gt; is better than cnn by 3.0" in page
    assert "cnn より3.0ポイント優れています" in page
    for words in ("1,954", "7,841", "34.0", "4,321", "1.90 ms", "param"):
        assert words in page
    assert page.count('lang="ja"') == page.count('lang="en"') - 1 + page.count('<html lang="ja"')  # but for the root


def test_the_ruler_puts_the_interval_to_the_right_side():
    page = comparison_page(record(difference=0.03, interval=(0.01, 0.05)))
    left, width = (float(value) for value in re.search(r'class="band" style="left:([\d.]+)%;width:([\d.]+)%', page).groups())  # type: ignore[union-attr]
    assert left > 50
    assert left + width < 100


@pytest.mark.parametrize(
    ("decision", "compared", "interval", "sentence", "explanation"),
    [
        ("second", "models", (-0.05, -0.01), "cnn is better than", "these two files"),
        ("no difference", "ways", (-0.01, 0.01), "No difference", "One of 2"),
        ("too few images", "ways", (-0.1, 0.1), "about 1,954", "one of 1 point 7,841"),
        ("cannot know: one seed", "ways", (0.01, 0.05), "one run of each", "do differ"),
        ("cannot know: one seed", "ways", (-0.01, 0.05), "one run of each", "do not differ"),
        ("cannot know: seeds differ", "ways", (-0.1, 0.1), "differ too much", "from seed to seed"),
    ],
)
def test_every_verdict_has_its_words(decision, compared, interval, sentence, explanation):
    found = record(decision, sum(interval) / 2, interval, compared)
    assert sentence in verdict_sentence(found).en
    assert explanation in verdict_explanation(found).en
    assert ("runs of each" in verdict_explanation(found).en) == (compared == "ways")
    assert re.search("[ぁ-ん]", verdict_sentence(found).ja)
    assert re.search("[ぁ-ん]", verdict_explanation(found).ja)


def test_differences_have_signs():
    assert signed_number(0.0213) == "+2.1"
    assert signed_number(-0.0213) == "−2.1"
    assert signed_number(-0.0002) == "0.0"
    assert points(-0.021, signed=False).ja == "-2.1ポイント"
    assert p_value(0.0004) == "< 0.001"


def test_the_tables_of_the_terminal_show_both_sides():
    both, spoiled = comparison_tables(record())
    assert [column.header for column in both.columns][1:] == ["<b>vit</b>", "cnn"]
    assert both.row_count == 12
    assert spoiled.row_count == 2


def test_figures_leave_out_what_was_not_measured():
    assert "cnn" in to_svg(pareto([Candidate("cnn", 0.9, (0.88, 0.92), 1.0, 1.5), Candidate("vit", 0.91, (0.9, 1.0), 3.0, 3.5)]))
    assert "nothing measured" in to_svg(pareto([]))
    lines = [Line("a", [32, 64], [1.0, float("nan")]), Line("b", [32, 64], [2.0, 9.0])]
    assert "milliseconds" in to_svg(cost_over_size(lines, "ms"))
    assert "測定がありません" in to_svg(cost_over_size([Line("a", [32], [float("nan")])], "ms", language="ja"))
