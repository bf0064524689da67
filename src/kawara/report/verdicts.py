"""Local or global? Sentences about a model, each supported or contradicted by a number that stands beside it.

`RULES` is the one table of what is claimed and where the line is drawn. The lines are ours: the papers show pictures, not limits. A number
on the other side of its line turns the sentence round; a number that is missing, or from too few images, leaves the question open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kawara.report.wording import Text

Outcome = Literal["supported", "contradicted", "open"]


@dataclass(frozen=True)
class Rule:
    """A claim and its line. The sentences hold `{}` for the value."""

    key: str
    claim: Text
    measure: Text
    threshold: float
    at_most: bool
    """Whether a value up to the threshold supports the claim; else one from the threshold on does."""
    supported: Text
    contradicted: Text
    percent: bool = True
    """Whether value and threshold are written in %."""
    min_images: int = 1
    source: str = ""


@dataclass(frozen=True)
class Evidence:
    """A value and the number of images that it rests on; `missing` says why there is none."""

    value: float | None
    num_images: int = 0
    missing: Text | None = None


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    rule: Rule
    outcome: Outcome
    value: float | None
    num_images: int
    sentence: Text

    @property
    def shown(self) -> str:
        """The value as it is written."""
        return "–" if self.value is None else _number(self.value, self.rule)

    @property
    def line(self) -> Text:
        """The threshold as it is written."""
        limit = _number(self.rule.threshold, self.rule)
        return Text(f"at most {limit}", f"{limit}以下") if self.rule.at_most else Text(f"at least {limit}", f"{limit}以上")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "key": self.rule.key,
            "claim": self.rule.claim.en,
            "outcome": self.outcome,
            "measure": self.rule.measure.en,
            "value": self.value,
            "threshold": self.rule.threshold,
            "supports": "at most" if self.rule.at_most else "at least",
            "num_images": self.num_images,
            "sentence": {"en": self.sentence.en, "ja": self.sentence.ja},
        }


RULES: tuple[Rule, ...] = (
    Rule(
        "local_heads_below",
        Text("The lowest blocks have local heads.", "最も浅いブロックに局所的なヘッドがある。"),
        Text(
            "distance of the most local head in the lowest quarter of the blocks / that of uniform attention",
            "下位4分の1のブロックで最も局所的なヘッドの距離 ÷ 一様なアテンションの距離",
        ),
        threshold=0.5,
        at_most=True,
        supported=Text(
            "The lowest blocks do have local heads: the most local one reaches {} as far as uniform attention.",
            "浅いブロックに局所的なヘッドがあります。最も局所的なヘッドの距離は、一様なアテンションの{}です。",
        ),
        contradicted=Text(
            "The lowest blocks have no local heads: even the most local one reaches {} as far as uniform attention. "
            "In ViTs this is a sign of too little training data.",
            "浅いブロックに局所的なヘッドがありません。最も局所的なヘッドでも、距離は一様なアテンションの{}です。"
            "ViTでは学習データ不足の兆候とされます。",
        ),
        source="Raghu et al. 2021, figs. 3 and 4",
    ),
    Rule(
        "global_heads_above",
        Text("All heads of the highest blocks are global.", "最も深いブロックのヘッドはすべて大域的である。"),
        Text(
            "distance of the most local head in the highest quarter of the blocks / that of uniform attention",
            "上位4分の1のブロックで最も局所的なヘッドの距離 ÷ 一様なアテンションの距離",
        ),
        threshold=2 / 3,
        at_most=False,
        supported=Text(
            "All heads of the highest blocks are global: the most local one still reaches {} as far as uniform attention.",
            "深いブロックのヘッドはすべて大域的です。最も局所的なヘッドでも、距離は一様なアテンションの{}あります。",
        ),
        contradicted=Text(
            "Not all heads of the highest blocks are global: the most local one reaches only {} as far as uniform attention.",
            "深いブロックのヘッドがすべて大域的とは言えません。最も局所的なヘッドの距離は、一様なアテンションの{}にとどまります。",
        ),
        source="Raghu et al. 2021, fig. 3",
    ),
    Rule(
        "sees_far_at_once",
        Text("The first block sees far already.", "最初のブロックから遠くまで見ている。"),
        Text(
            "mean distance of the pixels that the centre of the first block depends on / that of all pixels",
            "最初のブロックの中心が依存する画素の平均距離 ÷ 全画素の平均距離",
        ),
        threshold=0.5,
        at_most=False,
        supported=Text(
            "The first block sees far already: its receptive field is {} as wide as the whole image.",
            "最初のブロックから遠くまで見ています。受容野の広さは画像全体の{}です。",
        ),
        contradicted=Text(
            "The first block sees only its surroundings: its receptive field is {} as wide as the whole image.",
            "最初のブロックは周囲だけを見ています。受容野の広さは画像全体の{}です。",
        ),
        min_images=4,
        source="Raghu et al. 2021, figs. 6 and 7",
    ),
    Rule(
        "sees_everything_in_the_end",
        Text("The last block sees the whole image.", "最後のブロックは画像全体を見ている。"),
        Text(
            "mean distance of the pixels that the centre of the last block depends on / that of all pixels",
            "最後のブロックの中心が依存する画素の平均距離 ÷ 全画素の平均距離",
        ),
        threshold=2 / 3,
        at_most=False,
        supported=Text(
            "The last block sees the whole image: its receptive field is {} as wide.",
            "最後のブロックは画像全体を見ています。受容野の広さは画像全体の{}です。",
        ),
        contradicted=Text(
            "Even the last block does not see the whole image: its receptive field is {} as wide.",
            "最後のブロックでも画像全体は見ていません。受容野の広さは画像全体の{}です。",
        ),
        min_images=4,
        source="Raghu et al. 2021, figs. 6 and 7",
    ),
    Rule(
        "halves_differ",
        Text("The later half represents images unlike the first half.", "後半の層の表現は前半の層とは似ていない。"),
        Text("mean CKA of a layer of the lower and one of the upper half", "前半と後半の層の組のCKAの平均"),
        threshold=0.5,
        at_most=True,
        supported=Text(
            "The later half is unlike the first half (CKA {}): the model works in stages, as CNNs do.",
            "後半の層は前半の層と似ていません（CKA {}）。CNNのように段階的に処理しています。",
        ),
        contradicted=Text(
            "The later half is much like the first half (CKA {}): one representation is refined from block to block, "
            "as in the ViTs of the paper.",
            "後半の層は前半の層とよく似ています（CKA {}）。論文のViTのように、同じ表現を少しずつ磨いています。",
        ),
        percent=False,
        min_images=32,
        source="Raghu et al. 2021, fig. 1",
    ),
    Rule(
        "skip_carries_class_token_early",
        Text("In the first half, the skip connections carry the class token on.", "前半では、スキップ接続がクラストークンを運んでいる。"),
        Text(
            "skip ratio ‖z‖ / ‖f(z)‖ of the class token / that of the patches, first half, geometric mean",
            "スキップ比 ‖z‖ / ‖f(z)‖：クラストークン ÷ パッチ（前半の幾何平均）",
        ),
        threshold=1.0,
        at_most=False,
        supported=Text(
            "In the first half the skip connections carry the class token on, {} times as much as the patches.",
            "前半では、スキップ接続がクラストークンをパッチの{}倍の比率で運んでいます。",
        ),
        contradicted=Text(
            "In the first half the class token is rewritten more than the patches are: its skip ratio is {} times theirs.",
            "前半では、クラストークンの方がパッチより書き換えられています（スキップ比はパッチの{}倍）。",
        ),
        percent=False,
        source="Raghu et al. 2021, fig. 8",
    ),
    Rule(
        "class_token_rewritten_late",
        Text("In the second half, the class token is rewritten.", "後半では、クラストークンが書き換えられている。"),
        Text(
            "skip ratio ‖z‖ / ‖f(z)‖ of the class token / that of the patches, second half, geometric mean",
            "スキップ比 ‖z‖ / ‖f(z)‖：クラストークン ÷ パッチ（後半の幾何平均）",
        ),
        threshold=1.0,
        at_most=True,
        supported=Text(
            "In the second half the class token is rewritten more than the patches are: its skip ratio is {} times theirs.",
            "後半では、クラストークンの方がパッチより書き換えられています（スキップ比はパッチの{}倍）。",
        ),
        contradicted=Text(
            "In the second half, too, the class token is carried on more than the patches: its skip ratio is {} times theirs.",
            "後半でも、クラストークンはパッチより多く運ばれています（スキップ比はパッチの{}倍）。",
        ),
        percent=False,
        source="Raghu et al. 2021, fig. 8",
    ),
    Rule(
        "one_skip_is_missed",
        Text("There is a skip connection that the model cannot do without.", "欠かせないスキップ接続がある。"),
        Text(
            "answers that stay the same without the skip connection that is missed most",
            "最も影響の大きいスキップ接続を外しても変わらない回答の割合",
        ),
        threshold=0.5,
        at_most=True,
        supported=Text(
            "One skip connection carries the model: without it, only {} of the answers stay what they were.",
            "1つのスキップ接続がモデルを支えています。外すと、変わらない回答は{}だけです。",
        ),
        contradicted=Text(
            "No single skip connection is vital: without the most important one, {} of the answers stay what they were.",
            "単独で欠かせないスキップ接続はありません。最も重要なものを外しても、回答の{}は変わりません。",
        ),
        min_images=8,
        source="after Raghu et al. 2021, §5",
    ),
    Rule(
        "attention_smooths",
        Text("Attention is a low-pass filter.", "アテンションは低域通過フィルターとして働く。"),
        Text(
            "mean change of Δ log amplitude at the highest frequency by an attention layer",
            "アテンション層による最高周波数の対数振幅差の平均変化",
        ),
        threshold=-0.05,  # 5 % of the amplitude at each layer
        at_most=True,
        supported=Text(
            "Attention smooths: it changes the highest frequency by {} (log amplitude) at each layer.",
            "アテンションは平滑化しています。1層ごとに最高周波数の対数振幅が{}変わります。",
        ),
        contradicted=Text(
            "Attention does not smooth noticeably here: it changes the highest frequency by {} (log amplitude) at each layer.",
            "このモデルのアテンションは、目立った平滑化をしていません。1層ごとの最高周波数の対数振幅の変化は{}です。",
        ),
        percent=False,
        source="Park and Kim 2022, figs. 2 and 8",
    ),
    Rule(
        "place_is_kept",
        Text("Tokens of the last block still know their place.", "最後のブロックのトークンは自分の位置を保っている。"),
        Text("tokens most like the pixels of their own place", "自分の位置の画素に最も似ているトークンの割合"),
        threshold=0.5,
        at_most=False,
        supported=Text(
            "Location is kept to the end: {} of the tokens of the last block resemble the pixels at their own place most.",
            "位置の情報は最後まで保たれています。最後のブロックのトークンの{}が、自分の位置の画素に最も似ています。",
        ),
        contradicted=Text(
            "Location is lost on the way: only {} of the tokens of the last block resemble the pixels at their own place most.",
            "位置の情報は途中で失われています。自分の位置の画素に最も似ているのは、最後のブロックのトークンの{}だけです。",
        ),
        min_images=200,
        source="Raghu et al. 2021, fig. 9",
    ),
    Rule(
        "loud_tokens",
        Text(
            "Some patches are used as notebooks: tokens of very large norm.",
            "ノルムの非常に大きいトークンがあり、パッチがメモ代わりに使われている。",
        ),
        Text(
            "share of high-norm tokens, worst block of the second half whose norms form two groups (bimodality above 5/9)",
            "高ノルムトークンの割合（後半で、ノルムが2群に分かれる〈二峰性係数 5/9 超〉ブロックの最大値）",
        ),
        threshold=0.01,
        at_most=False,
        supported=Text(
            "There are tokens of very large norm ({} of the patches): they spoil attention maps; registers are the remedy.",
            "ノルムの非常に大きいトークンがあります（パッチの{}）。アテンションマップを乱す原因で、レジスターの追加が対策になります。",
        ),
        contradicted=Text(
            "There is no group of tokens of very large norm ({} of the patches): registers are not needed for clean maps.",
            "ノルムの非常に大きいトークンの群はありません（パッチの{}）。レジスターは不要です。",
        ),
        source="Darcet et al. 2023",
    ),
    Rule(
        "top_unlike_other",
        Text("The upper third is unlike any layer of the other model.", "上位3分の1の層は、もう一方のモデルのどの層とも似ていない。"),
        Text(
            "CKA with the most similar layer of the other model, mean over the upper third",
            "もう一方のモデルで最も似た層とのCKA（上位3分の1の平均）",
        ),
        threshold=0.5,
        at_most=True,
        supported=Text(
            "The upper third is unlike any layer of the other model (CKA with the most similar one {}).",
            "上位3分の1の層は、もう一方のモデルのどの層とも似ていません（最も似た層とのCKA {}）。",
        ),
        contradicted=Text(
            "Even the upper third has its like in the other model (CKA with the most similar layer {}).",
            "上位3分の1の層にも、もう一方のモデルに似た層があります（最も似た層とのCKA {}）。",
        ),
        percent=False,
        min_images=32,
        source="Raghu et al. 2021, fig. 2",
    ),
    Rule(
        "survives_lost_tiles",
        Text("The model stands the loss of half of the image.", "画像の半分を失っても答えられる。"),
        Text("accuracy with half of the tiles black / with none", "半分のタイルを黒くしたときの正解率 ÷ 元の正解率"),
        threshold=0.5,
        at_most=False,
        supported=Text(
            "With half of the image black, the model keeps {} of its accuracy.",
            "画像の半分を黒くしても、元の正解率の{}を保ちます。",
        ),
        contradicted=Text(
            "With half of the image black, the model keeps only {} of its accuracy.",
            "画像の半分を黒くすると、元の正解率の{}しか保てません。",
        ),
        min_images=24,
        source="Naseer et al. 2021, fig. 2",
    ),
)


def judge(evidence: Mapping[str, Evidence]) -> list[Verdict]:
    """Say of every rule that there is evidence for what became of it; rules that are not asked about are left out."""
    return [_judged(rule, evidence[rule.key]) for rule in RULES if rule.key in evidence]


def headline(verdicts: list[Verdict], name: str) -> Text:
    """Return the answer to "local or global?" in one line."""
    outcome = {verdict.rule.key: verdict.outcome for verdict in verdicts}
    below, above = outcome.get("local_heads_below", "open"), outcome.get("global_heads_above", "open")
    if "open" not in (below, above):
        first = (
            Text("local below", "浅い層は局所的") if below == "supported" else Text("no local heads below", "浅い層に局所的なヘッドがなく")
        )
        if below == "supported":
            last = (
                Text("global above", "深い層は大域的")
                if above == "supported"
                else Text("not all global above", "深い層にも局所的なヘッドが残る")
            )
        else:
            last = (
                Text("all global above", "深い層もすべて大域的")
                if above == "supported"
                else Text("not all global above", "深い層も一部だけ大域的")
            )
        return Text(f"{name}: {first.en}, {last.en}", f"{name}：{first.ja}、{last.ja}")
    early, late = outcome.get("sees_far_at_once", "open"), outcome.get("sees_everything_in_the_end", "open")
    if "open" not in (early, late):
        first = Text("sees far at once", "最初から遠くまで見て") if early == "supported" else Text("begins locally", "局所から始まり")
        last = (
            Text("sees everything in the end", "最後は全体を見る")
            if late == "supported"
            else Text("never sees everything", "最後まで全体は見ない")
        )
        return Text(f"{name}: {first.en}, {last.en}", f"{name}：{first.ja}、{last.ja}")
    return Text(f"What {name} looks at", f"{name} は何を見ているか")


def _judged(rule: Rule, evidence: Evidence) -> Verdict:
    value = None if evidence.value is None or not math.isfinite(evidence.value) else evidence.value
    if value is None:
        reason = evidence.missing or Text("It could not be measured.", "測定できませんでした。")
        return Verdict(rule, "open", None, evidence.num_images, Text(f"{rule.claim.en} {reason.en}", f"{rule.claim.ja}{reason.ja}"))
    if evidence.num_images < rule.min_images:
        reason = Text(
            f"Not decided: {evidence.num_images} images are too few, at least {rule.min_images} are needed.",
            f"判定なし：画像{evidence.num_images}枚では足りません（{rule.min_images}枚以上必要）。",
        )
        return Verdict(rule, "open", value, evidence.num_images, Text(f"{rule.claim.en} {reason.en}", f"{rule.claim.ja}{reason.ja}"))
    holds = value <= rule.threshold if rule.at_most else value >= rule.threshold
    sentence = rule.supported if holds else rule.contradicted
    number = _number(value, rule)
    outcome: Outcome = "supported" if holds else "contradicted"
    return Verdict(rule, outcome, value, evidence.num_images, Text(sentence.en.format(number), sentence.ja.format(number)))


def _number(value: float, rule: Rule) -> str:
    if not rule.percent:
        return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
    return f"{100 * value:.1f}%" if abs(value) < 0.0995 else f"{100 * value:.0f}%"
