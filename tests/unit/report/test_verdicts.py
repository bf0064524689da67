"""Sentences of an inspection: each turns round with its number, and none is said without enough images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kawara.analysis import evidence
from kawara.analysis.attention_statistics import AttentionStatistics
from kawara.analysis.observed_attention import TokenLayout
from kawara.analysis.outliers import TokenNorms
from kawara.analysis.receptive_field import ReceptiveFields
from kawara.analysis.robustness import Robustness
from kawara.analysis.similarity import Similarity
from kawara.analysis.skip import SkipRatios
from kawara.analysis.spectrum import Spectra
from kawara.report.verdicts import RULES, Evidence, Rule, headline, judge
from kawara.report.wording import Text


def verdict(rule: Rule, value: float, num_images: int = 1000):
    (found,) = judge({rule.key: Evidence(value, num_images)})
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.key)
def test_every_sentence_flips_at_its_line(rule):
    inside, outside = (-0.01, 0.01) if rule.at_most else (0.01, -0.01)
    holds, fails = verdict(rule, rule.threshold + inside), verdict(rule, rule.threshold + outside)
    assert (holds.outcome, fails.outcome) == ("supported", "contradicted")
    assert verdict(rule, rule.threshold).outcome == "supported"
    for language in ("en", "ja"):
        sentences = {getattr(each.sentence, language) for each in (holds, fails)}
        assert len(sentences) == 2
        assert all("{}" not in sentence for sentence in sentences)
        assert holds.shown in getattr(holds.sentence, language)
        assert fails.shown in getattr(fails.sentence, language)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.min_images > 1], ids=lambda rule: rule.key)
def test_too_few_images_leave_it_open(rule):
    found = verdict(rule, rule.threshold, rule.min_images - 1)
    assert found.outcome == "open"
    assert str(rule.min_images) in found.sentence.en
    assert str(rule.min_images) in found.sentence.ja
    assert verdict(rule, rule.threshold, rule.min_images).outcome == "supported"


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_no_number_no_verdict(value):
    (found,) = judge({"survives_lost_tiles": Evidence(value, 100, Text("It needs labels.", "ラベルが必要です。"))})
    assert found.outcome == "open"
    assert found.to_dict()["value"] is None
    assert found.sentence.en.endswith("It needs labels.")
    assert found.shown == "–"


def test_only_what_is_asked_about_is_judged():
    assert [found.rule.key for found in judge({"halves_differ": Evidence(0.9, 64)})] == ["halves_differ"]
    assert judge({}) == []


def test_rules_are_distinct_and_their_lines_are_written():
    assert len({rule.key for rule in RULES}) == len(RULES)
    assert verdict(RULES[0], 0.17).line == Text("at most 50%", "50%以下")
    assert verdict(RULES[1], 0.7).line == Text("at least 67%", "67%以上")


def attention(distance: list[list[float]]) -> AttentionStatistics:
    distances = np.array(distance)
    return AttentionStatistics(
        places=tuple(f"blocks.{number}.attn" for number in range(len(distances))),
        distance_px=distances,
        entropy_nats=np.ones_like(distances),
        agreement=np.zeros(len(distances)),
        prefix_share=np.zeros((*distances.shape, 1)),
        layout=TokenLayout(("class",), (14, 14), (16, 16)),
        num_images=64,
        renormalised=False,
        deviation=0.0,
    )


def test_a_local_and_a_global_model_get_opposite_sentences():
    deep = [[100.0, 110.0]] * 6
    seen = {}
    for name, lowest in (("mixed", [[20.0, 110.0], [30.0, 100.0]]), ("global", [[100.0, 110.0]] * 2)):
        statistics = attention([*lowest, *deep])
        seen[name] = judge(
            {
                "local_heads_below": Evidence(evidence.nearest_head_below(statistics), 64),
                "global_heads_above": Evidence(evidence.nearest_head_above(statistics), 64),
            }
        )
    assert [found.outcome for found in seen["mixed"]] == ["supported", "supported"]
    assert [found.outcome for found in seen["global"]] == ["contradicted", "supported"]
    assert seen["mixed"][0].value == pytest.approx(20 / 116.4922, rel=1e-5)
    assert "too little training data" in seen["global"][0].sentence.en
    assert "データ不足" in seen["global"][0].sentence.ja
    assert headline(seen["mixed"], "m").en == "m: local below, global above"
    assert headline(seen["global"], "m").en == "m: no local heads below, all global above"
    assert headline([], "m").en == "What m looks at"


def test_local_heads_must_be_low_and_the_highest_must_all_be_global():
    upside_down = attention([[110.0, 110.0]] * 6 + [[110.0, 20.0]] * 2)
    assert evidence.nearest_head_below(upside_down) == pytest.approx(110 / 116.4922, rel=1e-5)
    assert evidence.nearest_head_above(upside_down) == pytest.approx(20 / 116.4922, rel=1e-5)


def test_the_class_token_is_compared_with_the_patches_half_by_half():
    tokens = (np.array([8.0, 2.0, 2.0]), np.array([2.0, 1.0, 1.0]), np.array([1.0, 4.0, 4.0]), np.array([np.inf, 1.0, 1.0]))
    ratios = SkipRatios(("a.skip1", "a.skip2", "b.skip1", "b.skip2"), tokens, 1, 8)
    assert evidence.class_token_carried(ratios, late=False) == pytest.approx(math.sqrt(4 * 2))
    assert evidence.class_token_carried(ratios, late=True) == pytest.approx(1 / 4)  # a silent branch says nothing
    assert math.isnan(evidence.class_token_carried(SkipRatios(("a",), (np.ones(4),), 0, 8), late=False))


def test_smoothing_is_the_mean_change_on_one_grid():
    amplitudes = tuple(np.array(values) for values in ([0.0, -1.0], [0.0, -1.5], [0.0, -1.2], [0.0, -1.3], [0.0]))
    spectra = Spectra(tuple("abcde"), ("embedding", "attention", "mlp", "attention", "attention"), amplitudes, amplitudes, np.ones(5), 8)
    assert evidence.sharpening(spectra, ["attention"]) == pytest.approx((-0.5 - 0.1) / 2)
    assert evidence.sharpening(spectra, ["mlp"]) == pytest.approx(0.3)
    assert math.isnan(evidence.sharpening(spectra, ["block"]))


def test_a_uniform_field_of_view_is_1_and_a_point_is_near_0():
    point = np.zeros((20, 20))
    point[10, 10] = 1
    fields = ReceptiveFields(("a", "b"), np.stack([point, np.full((20, 20), 1 / 400)]), np.array([[10.5, 10.5], [10.5, 10.5]]), 8)
    assert evidence.view_of_first(fields) == pytest.approx(0, abs=1e-9)
    assert evidence.view_of_last(fields) == pytest.approx(1)


def test_outliers_count_where_norms_form_two_groups():
    rng = np.random.default_rng(0)
    normal = np.exp(rng.normal(0, 0.1, (10, 10, 10)))
    spiked = normal.copy()
    spiked[:, 0, :5] *= 20
    flat = TokenNorms(("a", "b"), (spiked, normal), np.array([3.0, 3.0]))
    loud = TokenNorms(("a", "b"), (normal, spiked), np.array([3.0, 3.0]))
    assert evidence.largest_share_of_outliers(flat) == 0  # only the second half counts
    assert evidence.largest_share_of_outliers(loud) == pytest.approx(0.05)
    tail = TokenNorms(("a", "b"), (normal, normal), np.array([1.1, 1.1]))
    assert evidence.largest_share_of_outliers(tail) == 0


def test_the_best_match_is_sought_for_the_upper_third():
    cka = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.4]])
    assert evidence.best_match_of_top(Similarity(("a", "b", "c"), ("x", "y"), cka, 64)) == pytest.approx(0.4)


def test_half_of_the_tiles_is_found_between_two_strengths():
    right = np.zeros((3, 1, 10), dtype=bool)
    right[0, 0, :8] = right[1, 0, :6] = right[2, 0, :2] = True
    assert evidence.kept_with_half_lost(Robustness("drop_random", "share_of_tiles", (0.0, 0.4, 0.6), right)) == pytest.approx(0.5)
    assert math.isnan(evidence.kept_with_half_lost(Robustness("drop_random", "share_of_tiles", (0.0, 0.6), right[:2] & False)))
