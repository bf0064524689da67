"""What the doctor of a training run has to say, in words."""

from __future__ import annotations

from collections.abc import Sequence

from kawara.recipes.advice import Remark
from kawara.recipes.known_results import KnownResult
from kawara.recipes.rates import Rate
from kawara.training.chance import Chance
from kawara.training.hopelessness import Look, Verdict

_TITLES = {
    "rate": ("After {} epochs next to nothing was learned.", "{}エポックで、ほとんど何も学習していません。"),
    "stuck": ("After {} epochs nothing was learned.", "{}エポックで、何も学習していません。"),
    "slow": ("At chance after {} epochs.", "{}エポックの時点で当て推量と変わりません。"),
    "collapsed": (
        "At chance again after {} epochs: what was learned is lost, as when a warm-up is too steep or the rate too high.",
        "{}エポックの時点で当て推量に戻り、学習が失われました。ウォームアップが急すぎるか、学習率が高すぎるときに起こります。",
    ),
}


def expectation(chance: Chance, near: Sequence[KnownResult]) -> Remark:
    """Say what guessing gives, and what the nearest measured results gave."""
    guess, largest = 1 / chance.num_classes, chance.largest_in_validation
    en, ja = f"Guessing is right in {guess:.1%}", f"当て推量の正解率は {guess:.1%}"
    if largest > 1.05 * guess:
        en += f", always naming the largest class in {largest:.1%}"
        ja += f"、常に最多のクラスと答えると {largest:.1%}"
    en, ja = f"{en} of the validation images", f"{ja}（検証画像）"
    if near:
        en += f"; of what was measured, the nearest gave {_band(near)}"
        ja += f"。これまでに測った近い例では {_band(near)}"
    return Remark("expectation", f"{en}.", f"{ja}。")


def title(verdict: Verdict, look: Look) -> str:
    """Return a verdict in one sentence."""
    return _TITLES[verdict.kind][0].format(look.epoch)


def evidence(verdict: Verdict, look: Look, chance: Chance, rate: Rate, optimizer: str) -> str:
    """Return the numbers that a verdict rests on."""
    parts = [
        f"{look.validation_right / look.validation_images:.1%} of {look.validation_images} validation images are right, where always "
        f"naming the largest class gives {chance.largest_in_validation:.1%}"
    ]
    if look.loss is not None:
        parts.append(f"the loss of the last epoch is {look.loss:.3f}, where knowing nothing gives {chance.loss:.3f}")
    if verdict.kind == "rate":
        now = rate.peak * look.rate / rate.excess
        parts.append(
            f"{rate.setting} is at {now:.2g} now, {look.rate:.0f} times the {rate.usual:.2g} that {optimizer} usually takes for this "
            "batch and width"
        )
    return "; ".join(parts)


def verdict_in_words(verdict: Verdict, look: Look, chance: Chance, numbers: str, mending: str) -> Remark:
    """Say a verdict without stopping the run; `numbers` is its evidence, `mending` a command that may help."""
    accuracy = look.validation_right / look.validation_images
    return Remark(
        verdict.kind,
        f"{title(verdict, look)} {numbers[0].upper()}{numbers[1:]}. What may help: {mending}",
        f"{_TITLES[verdict.kind][1].format(look.epoch)}検証正解率 {accuracy:.1%}"
        f"（常に最多のクラスなら {chance.largest_in_validation:.1%}）。試すとよいコマンド：{mending}",
    )


def collapsed_attention(places: Sequence[str], step: int, share: float) -> Remark:
    """Say that in these layers the entropy of attention is below a share of that of uniform attention."""
    shown = ", ".join(places)
    return Remark(
        f"attention of {shown}",
        f"The attention of {shown} has collapsed at step {step}: every query takes nearly all from one token (entropy below {share:.0%} of "
        "uniform; arXiv 2303.06296). A lower rate or a longer schedule.warmup.",
        f"ステップ {step} で {shown} の注意が 1 個のトークンに集中しました（エントロピーが一様な場合の {share:.0%} 未満。"
        "arXiv 2303.06296）。学習率を下げるか、schedule.warmup を長くしてください。",
    )


def _band(rows: Sequence[KnownResult]) -> str:
    if len(rows) == 1:
        return f"{rows[0].top1:.0%} ({rows[0].data}, {rows[0].how})"
    low, high = min(row.top1 for row in rows), max(row.top1 for row in rows)
    return f"{low:.0%}–{high:.0%} ({'; '.join(f'{row.data}, {row.how}: {row.top1:.0%}' for row in rows)})"
