"""What a recipe is made of, one by one: is it in, and which settings take it out. As in table 8 of DeiT (arXiv 2012.12877)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kawara.registry import Registry
from kawara.training.run_config import RunConfig
from kawara.training.schedule import Duration


@dataclass(frozen=True)
class Ingredient:
    """Something that a recipe may do without."""

    name: str
    description: str
    description_ja: str
    explanation: str
    """What it does, in one sentence."""
    explanation_ja: str
    arxiv: str
    """Number of the paper that it comes from, or that describes it."""
    is_in: Callable[[RunConfig], bool]
    without: dict[str, Any]
    """Settings, by dotted path, that take it out."""


INGREDIENTS: Registry[Ingredient] = Registry("ingredient")


def ingredients_of(config: RunConfig) -> list[Ingredient]:
    """Return those that a configuration has, in the order of the registry."""
    return [INGREDIENTS[name] for name in INGREDIENTS if INGREDIENTS[name].is_in(config)]


def _add(
    name: str, words: tuple[str, str], explanation: tuple[str, str], source: str, is_in: Callable[[RunConfig], bool], **without: Any
) -> None:
    settings = {path.replace("__", "."): value for path, value in without.items()}
    INGREDIENTS.add(name, Ingredient(name, *words, *explanation, source, is_in, settings))


_add(
    "crop",
    ("crops at random", "ランダムクロップ"),
    (
        "Trains on another part of an image each time, so that place and size of a thing do not count.",
        "毎回、画像の違う部分を切り出して学習し、位置や大きさの違いに慣れさせます。",
    ),
    "1409.4842",
    lambda c: c.augment.crop != "none",
    augment__crop="none",
)
_add(
    "flip",
    ("mirror images", "左右反転"),
    ("Mirrors images at random: left and right do not count.", "画像をランダムに左右反転し、左右の違いを問題にしないようにします。"),
    "1409.1556",
    lambda c: c.augment.flip > 0,
    augment__flip=0.0,
)
_add(
    "rotation",
    ("small turns and shifts", "小さな回転と移動"),
    (
        "Turns and shifts each image a little, so that slant and exact place do not count.",
        "画像を少し回したりずらしたりし、傾きや細かな位置の違いに慣れさせます。",
    ),
    "1805.09501",
    lambda c: c.augment.rotation_degrees > 0 or c.augment.translation > 0,
    augment__rotation_degrees=0.0,
    augment__translation=0.0,
)
_add(
    "rand_augment",
    ("RandAugment", "RandAugment"),
    (
        "Applies a few changes of geometry and colour, drawn anew for each image.",
        "形や色を変える処理を、画像ごとにいくつか選んで加えます。",
    ),
    "1909.13719",
    lambda c: c.augment.rand_augment is not None,
    augment__rand_augment=None,
)
_add(
    "three_augment",
    ("3-Augment", "3-Augment"),
    (
        "Makes each image grey, solarises or blurs it: a short list in the place of RandAugment's.",
        "グレー化、ソラリゼーション、ぼかしのどれか 1 つを画像ごとに加える、RandAugment より簡素な方法です。",
    ),
    "2204.07118",
    lambda c: c.augment.three_augment,
    augment__three_augment=False,
)
_add(
    "color_jitter",
    ("colour jitter", "色の変動"),
    (
        "Changes brightness, contrast and saturation a little, so that the light does not count.",
        "明るさ、コントラスト、彩度を少し変え、照明の違いに慣れさせます。",
    ),
    "1312.5402",
    lambda c: c.augment.color_jitter > 0,
    augment__color_jitter=0.0,
)
_add(
    "erasing",
    ("random erasing", "ランダム消去"),
    (
        "Covers a rectangle of some images, so that no single part is relied on.",
        "一部の画像で長方形の領域を消し、特定の部分だけに頼らないようにします。",
    ),
    "1708.04896",
    lambda c: c.augment.erasing > 0,
    augment__erasing=0.0,
)
_add(
    "mixup",
    ("Mixup", "Mixup"),
    (
        "Blends two images and their labels, so that answers between the classes change gradually.",
        "2 枚の画像とラベルを混ぜ合わせ、クラスの間で答えがなだらかに変わるようにします。",
    ),
    "1710.09412",
    lambda c: c.task.mix.active and c.task.mix.mixup > 0,
    task__mix__mixup=0.0,
)
_add(
    "cutmix",
    ("CutMix", "CutMix"),
    (
        "Pastes a rectangle of one image into another and shares the label by area.",
        "ある画像の長方形を別の画像に貼り、面積に応じてラベルを分けます。",
    ),
    "1905.04899",
    lambda c: c.task.mix.active and c.task.mix.cutmix > 0,
    task__mix__cutmix=0.0,
)
_add(
    "label_smoothing",
    ("label smoothing", "ラベル平滑化"),
    (
        "Gives a little of each label to all classes, against answers that are too sure.",
        "正解ラベルの一部を全クラスに配り、自信過剰な答えを防ぎます。",
    ),
    "1512.00567",
    lambda c: c.task.label_smoothing > 0,
    task__label_smoothing=0.0,
)
_add(
    "stochastic_depth",
    ("stochastic depth", "確率的深さ"),
    (
        "Skips the branches of blocks at random in training, so that none is indispensable.",
        "学習中にブロックの枝をランダムに飛ばし、どのブロックにも頼りきらないようにします。",
    ),
    "1603.09382",
    lambda c: c.model.stochastic_depth > 0,
    model__stochastic_depth=0.0,
)
_add(
    "dropout",
    ("dropout", "ドロップアウト"),
    (
        "Sets activations to zero at random in training, so that none is relied on alone.",
        "学習中に活性値をランダムに 0 にし、特定の値に頼らないようにします。",
    ),
    "1207.0580",
    lambda c: c.model.dropout > 0,
    model__dropout=0.0,
)
_add(
    "repeated_augmentation",
    ("each image several times a batch", "バッチ内での画像の反復"),
    (
        "Puts several augmentations of the same image into one batch, and fewer different images.",
        "同じ画像に別々のデータ拡張をかけたものを 1 つのバッチに入れます。その分、異なる画像は減ります。",
    ),
    "1901.09335",
    lambda c: c.sampler.repeats > 1,
    sampler__repeats=1,
)
_add(
    "averaging",
    ("average of the weights", "重みの平均"),
    (
        "Answers with a running average of the weights, which wavers less than the last step.",
        "重みの移動平均で答えます。最後のステップの重みよりも揺れが小さくなります。",
    ),
    "1703.01780",
    lambda c: c.average_decay > 0,
    average_decay=0.0,
)
_add(
    "warmup",
    ("warm-up of the learning rate", "学習率のウォームアップ"),
    (
        "Raises the learning rate from near zero over the first steps, while gradients are still wild.",
        "勾配の荒い最初のうちは、学習率を 0 近くから徐々に上げます。",
    ),
    "1706.02677",
    lambda c: Duration.parse(c.schedule.warmup).amount > 0,
    schedule__warmup="0%",
)
_add(
    "annealing",
    ("annealing of the learning rate", "学習率の減衰"),
    (
        "Lowers the learning rate towards the end, so that the weights settle.",
        "終わりに向けて学習率を下げ、重みを落ち着かせます。",
    ),
    "1608.03983",
    lambda c: c.schedule.kind != "constant",
    schedule__kind="constant",
)
_add(
    "weight_decay",
    ("weight decay", "重み減衰"),
    (
        "Pulls the weights towards zero at each step, against solutions larger than needed.",
        "ステップごとに重みを 0 へ少し引き戻し、必要以上に大きくならないようにします。",
    ),
    "1711.05101",
    lambda c: c.optimizer.weight_decay > 0,
    optimizer__weight_decay=0.0,
)
_add(
    "clipping",
    ("clipping of the gradients", "勾配クリッピング"),
    (
        "Shortens gradients above a length, so that one bad batch does no harm.",
        "長すぎる勾配を切り詰め、1 つの悪いバッチに壊されないようにします。",
    ),
    "1211.5063",
    lambda c: c.optimizer.clip_norm is not None,
    optimizer__clip_norm=None,
)
_add(
    "muon",
    ("Muon (AdamW in its place)", "Muon（かわりに AdamW）"),
    (
        "Makes the update of each matrix orthogonal, so that all its directions learn alike; without it, AdamW at its own rate.",
        "行列の更新を直交化し、どの方向も同じように学習させます。抜いた場合は AdamW をその学習率で使います。",
    ),
    "2502.16982",
    lambda c: c.optimizer.name == "muon",
    optimizer__name="adamw",
)
