"""What is worth a word before a run: settings that somebody asked for and that seldom go well, each with the reason and the way out.

A setting that a recipe brought, or that was chosen from the images, is never spoken of: whoever typed nothing did nothing wrong.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from kawara.recipes.rates import rates
from kawara.training.run_config import RunConfig
from kawara.training.schedule import Duration

FEWEST_TOKENS, MOST_TOKENS = 16, 1024
NARROWEST_HEAD = 32
FAR_ABOVE, FAR_BELOW = 3.0, 0.01
FEW_IMAGES_A_CLASS = 500
SMALLEST_PHOTO_PX = 64
FEWEST_STEPS_AN_EPOCH = 4


@dataclass(frozen=True)
class Remark:
    """Something to say about a run, in both languages."""

    code: str
    en: str
    ja: str


def advice(
    config: RunConfig,
    model_config: Any,
    asked: Collection[str],
    *,
    num_images: int,
    num_classes: int,
    image_size_px: int,
    steps_per_epoch: int,
) -> list[Remark]:
    """Return what is worth saying about the settings `asked` for, by dotted path.

    Args:
        config, model_config: what the run and its model were settled to be.
        num_images: training images.
    """
    remarks = [
        *_tokens(model_config, asked),
        *_head_width(model_config, asked),
        *_rates(config, model_config, asked),
        *_few_images(config, num_images, num_classes, image_size_px),
        *_few_steps(config, asked, steps_per_epoch),
        *_long_warmup(config, asked, steps_per_epoch),
    ]
    return list({remark.code: remark for remark in remarks}.values())


def _tokens(model_config: Any, asked: Collection[str]) -> list[Remark]:
    patch = getattr(model_config, "patch_size", None)
    if patch is None or not _any(asked, "model.name", "model.options", "data.image_size"):
        return []
    height, width = model_config.image_size
    num_tokens = -(-height // patch) * -(-width // patch)
    if num_tokens < FEWEST_TOKENS:
        return [
            Remark(
                "few_tokens",
                f"Patches of {patch} px cut an image of {height}×{width} px into only {num_tokens}: there is little for attention "
                f"to compare. A --model with smaller patches, or --image-size {4 * patch}.",
                f"{patch} px のパッチでは {height}×{width} px の画像が {num_tokens} 個にしかならず、注意が比べるものがほとんどありません。"
                f"パッチの小さい --model か、--image-size {4 * patch} を。",
            )
        ]
    if num_tokens > MOST_TOKENS:
        return [
            Remark(
                "many_tokens",
                f"Patches of {patch} px make {num_tokens:,} tokens of {height}×{width} px, and attention costs their square. "
                "A --model with larger patches or a smaller --image-size.",
                f"{patch} px のパッチでは {height}×{width} px から {num_tokens:,} 個のトークンができ、注意の計算はその 2 乗で増えます。"
                "パッチの大きい --model か、小さい --image-size を。",
            )
        ]
    return []


def _head_width(model_config: Any, asked: Collection[str]) -> list[Remark]:
    width, heads = getattr(model_config, "width", None), getattr(model_config, "heads", None)
    if not (isinstance(width, int) and isinstance(heads, int)) or not _any(asked, "model.name", "model.options"):
        return []
    if width / heads >= NARROWEST_HEAD:
        return []
    fewer = max(1, width // (64 if width >= 192 else NARROWEST_HEAD))
    while width % fewer:
        fewer -= 1
    return [
        Remark(
            "narrow_heads",
            f"Heads of width {width // heads} ({width} / {heads}) are narrow: so few directions hardly tell tokens "
            f"apart; the papers use 64. --set model.options.heads={fewer}",
            f"ヘッドの幅が {width // heads}（{width} / {heads}）と狭く、これだけの次元ではトークンを見分けにくくなります（論文では 64）。"
            f"--set model.options.heads={fewer}",
        )
    ]


def _rates(config: RunConfig, model_config: Any, asked: Collection[str]) -> list[Remark]:
    step_size = config.batch_size * config.accumulate
    found = rates(config.optimizer, step_size, getattr(model_config, "width", None), frozen_backbone=config.model.frozen_backbone)
    remarks = []
    for rate in found:
        if not _any(asked, rate.setting):
            continue
        given = f"{rate.setting} is {rate.peak:.3g} for a step of {step_size} images"
        given_ja = f"{rate.setting} は 1 ステップ {step_size} 枚で {rate.peak:.3g}"
        if rate.excess >= FAR_ABOVE:
            remarks.append(
                Remark(
                    f"high {rate.setting}",
                    f"{given}, {rate.excess:.0f} times what {config.optimizer.name} usually takes here ({rate.usual:.2g}): the run "
                    f"may never leave chance. Without --set {rate.setting} the recipe {config.recipe} takes its own.",
                    f"{given_ja}で、{config.optimizer.name} の通常の値（{rate.usual:.2g}）の {rate.excess:.0f} 倍です。"
                    f"当て推量のまま終わるおそれがあります。--set {rate.setting} を外すと、レシピ {config.recipe} の値になります。",
                )
            )
        elif rate.excess <= FAR_BELOW:
            remarks.append(
                Remark(
                    f"low {rate.setting}",
                    f"{given}, less than a hundredth of what {config.optimizer.name} usually takes here ({rate.usual:.2g}): little will be "
                    f"learned in time. Without --set {rate.setting} the recipe {config.recipe} takes its own.",
                    f"{given_ja}で、{config.optimizer.name} の通常の値（{rate.usual:.2g}）の 100 分の 1 以下です。"
                    f"時間内にはほとんど学習しません。--set {rate.setting} を外すと、レシピ {config.recipe} の値になります。",
                )
            )
    return remarks[:1]


def _few_images(config: RunConfig, num_images: int, num_classes: int, image_size_px: int) -> list[Remark]:
    per_class = num_images / num_classes
    if config.model.pretrained or config.data.color == "grey" or image_size_px < SMALLEST_PHOTO_PX or per_class >= FEW_IMAGES_A_CLASS:
        return []
    return [
        Remark(
            "few_images",
            f"{per_class:,.0f} photos a class are few to learn from scratch. A model that has seen others begins far ahead: "
            "--pretrained CHECKPOINT (with 195 photos of ants and bees, 97 %).",
            f"1 クラス {per_class:,.0f} 枚の写真は、一から学習するには少数です。学習済みモデルからなら、ずっと先から始められます："
            "--pretrained CHECKPOINT（アリとハチの写真 195 枚で 97%）。",
        )
    ]


def _few_steps(config: RunConfig, asked: Collection[str], steps_per_epoch: int) -> list[Remark]:
    if steps_per_epoch >= FEWEST_STEPS_AN_EPOCH or config.model.frozen_backbone or not _any(asked, "batch_size", "accumulate"):
        return []
    smaller = max(8, config.batch_size * config.accumulate * steps_per_epoch // 16)
    return [
        Remark(
            "few_steps",
            f"An epoch has only {steps_per_epoch} steps of {config.batch_size * config.accumulate} images: what is learned comes in steps. "
            f"--set batch_size={smaller}",
            f"1 エポックが {config.batch_size * config.accumulate} 枚ずつ {steps_per_epoch} ステップしかありません。"
            f"学習はステップごとに進みます。--set batch_size={smaller}",
        )
    ]


def _long_warmup(config: RunConfig, asked: Collection[str], steps_per_epoch: int) -> list[Remark]:
    warmup, total = Duration.parse(config.schedule.warmup), config.parsed_length.steps(steps_per_epoch)
    steps = warmup.steps(steps_per_epoch)
    share = warmup.amount / 100 if steps is None else steps / total if total else 0.0
    if share <= 0.5 or not _any(asked, "schedule.warmup", "length"):
        return []
    return [
        Remark(
            "long_warmup",
            f"The warm-up takes {share:.0%} of the run: the rate is hardly ever at its peak. --set schedule.warmup=5%",
            f"ウォームアップが全体の {share:.0%} を占め、学習率が最大になる時間がほとんどありません。--set schedule.warmup=5%",
        )
    ]


def _any(asked: Collection[str], *paths: str) -> bool:
    """Whether one of the settings, or a part of it, was asked for."""
    return any(name == path or name.startswith(f"{path}.") for name in asked for path in paths)
