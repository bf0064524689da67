"""The verdict of a comparison in one sentence, in English and in Japanese."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kawara.report import wording
from kawara.report.wording import Text

_NO_BREAK = "\N{NO-BREAK SPACE}"


def verdict_sentence(record: Mapping[str, Any]) -> Text:
    """Return what can be said about the two sides, and if nothing, why."""
    verdict, (first, second) = record["verdict"], record["labels"]
    decision = verdict["decision"]
    by = points(abs(verdict["difference"]), signed=False)
    if decision in ("first", "second"):
        winner, loser = (first, second) if decision == "first" else (second, first)
        return Text(f"{winner} is better than {loser} by {by.en}", f"{winner} は {loser} より{by.ja}優れています")
    if decision == "no difference":
        return Text("No difference was found", "差は認められませんでした")
    if decision == "too few images":
        needed = verdict["images_needed"]["0.02"]
        return Text(
            f"Too few images to tell: about {needed:,} would be needed", f"画像が少なすぎて判定できません。およそ{needed:,}枚が必要です"
        )
    if decision == "cannot know: seeds differ":
        return Text("It cannot be known yet: the runs of each differ too much", "まだ判定できません。学習ごとの変動が大きすぎます")
    return Text("It cannot be known from one run of each", "1回ずつの学習だけでは判定できません")


def verdict_explanation(record: Mapping[str, Any]) -> Text:
    """Return what stands behind the verdict, in a sentence or two."""
    verdict, (first, second) = record["verdict"], record["labels"]
    low, high = verdict["difference_ci95"]
    images, seeds = verdict["num_images"], verdict["num_seeds"]
    value, interval = points(verdict["difference"]), points_range(low, high)
    runs = Text("", "")
    if record["compared"] == "ways":
        runs = Text(f" and {seeds[0]} run{'' if seeds[0] == 1 else 's'} of each", f"、各{seeds[0]}回の学習")
    measured = Text(
        f"{first} minus {second}: {value.en}, 95{_NO_BREAK}% interval {interval.en} (on {images:,} images{runs.en}).",
        f"{first} − {second} の差は{value.ja}、95%信頼区間は{interval.ja}（画像{images:,}枚{runs.ja}）。",
    )
    reason = _reason(record, excludes_zero=low > 0 or high < 0)
    return Text(f"{measured.en} {reason.en}".strip(), f"{measured.ja}{reason.ja}")


def _reason(record: Mapping[str, Any], *, excludes_zero: bool) -> Text:
    verdict = record["verdict"]
    needed = verdict["images_needed"]
    match verdict["decision"]:
        case "too few images":
            return Text(
                f"A difference of 2 points would probably not have been seen on so few: that takes about {needed['0.02']:,} images, "
                f"one of 1 point {needed['0.01']:,}.",
                "この枚数では2ポイントの差があっても見逃す可能性が高いです。"
                f"2ポイントなら約{needed['0.02']:,}枚、1ポイントなら約{needed['0.01']:,}枚が必要です。",
            )
        case "cannot know: one seed" if excludes_zero:
            return Text(
                "These two models do differ; whether the kind of model made the difference or the luck of the run, one run of each "
                "cannot tell. Repeat with --seeds 3 or more.",
                "この2つのモデルの間には差がありますが、それがモデルの種類によるものか学習の偶然によるものかは、1回ずつでは分かりません。"
                "--seeds 3 以上で繰り返してください。",
            )
        case "cannot know: one seed":
            return Text(
                "These two models do not differ; whether others of their kind would, one run of each cannot tell. "
                "Repeat with --seeds 3 or more.",
                "この2つのモデルの間に差は認められませんが、学習をやり直した場合にどうなるかは、1回ずつでは分かりません。"
                "--seeds 3 以上で繰り返してください。",
            )
        case "cannot know: seeds differ":
            return Text(
                "The accuracy changes so much from seed to seed that 2 points could be hidden in it: more seeds, or longer training, "
                "would show more.",
                "シードごとの変動が大きく、2ポイントの差でも隠れてしまいます。シードを増やすか、学習を長くしてください。",
            )
        case "no difference":
            return Text("One of 2 points would very probably have been seen.", "2ポイントの差があれば、高い確率で検出できたはずです。")
        case _ if record["compared"] == "models":
            return Text(
                "This holds for these two files; what other training runs would give, they cannot tell.",
                "これはこの2つのファイルについての結果です。学習をやり直した場合のことは分かりません。",
            )
    return Text("", "")


def points(value: float, *, signed: bool = True) -> Text:
    """Return a difference of accuracies in points (hundredths): "+2.1 points"."""
    number = signed_number(value) if signed else f"{100 * value:.1f}"
    return Text(f"{number}{_NO_BREAK}points", f"{number}ポイント")


def points_range(low: float, high: float) -> Text:
    """Return an interval of differences in points."""
    return Text(f"{signed_number(low)} to {signed_number(high)}", f"{signed_number(low)}〜{signed_number(high)}ポイント")


def signed_number(share: float) -> str:
    """Return a difference in hundredths with its sign, and a true minus."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def p_value(p: float) -> str:
    """Return a p-value as people write it."""
    return "< 0.001" if p < 0.001 else wording.decimal(p, 3)
