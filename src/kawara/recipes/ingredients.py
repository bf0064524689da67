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
    is_in: Callable[[RunConfig], bool]
    without: dict[str, Any]
    """Settings, by dotted path, that take it out."""


INGREDIENTS: Registry[Ingredient] = Registry("ingredient")


def ingredients_of(config: RunConfig) -> list[Ingredient]:
    """Return those that a configuration has, in the order of the registry."""
    return [INGREDIENTS[name] for name in INGREDIENTS if INGREDIENTS[name].is_in(config)]


def _add(name: str, description: str, is_in: Callable[[RunConfig], bool], **without: Any) -> None:
    settings = {path.replace("__", "."): value for path, value in without.items()}
    INGREDIENTS.add(name, Ingredient(name, description, is_in, settings))


_add("crop", "crops at random", lambda c: c.augment.crop != "none", augment__crop="none")
_add("flip", "mirror images", lambda c: c.augment.flip > 0, augment__flip=0.0)
_add("rand_augment", "RandAugment", lambda c: c.augment.rand_augment is not None, augment__rand_augment=None)
_add("three_augment", "3-Augment", lambda c: c.augment.three_augment, augment__three_augment=False)
_add("color_jitter", "colour jitter", lambda c: c.augment.color_jitter > 0, augment__color_jitter=0.0)
_add("erasing", "random erasing", lambda c: c.augment.erasing > 0, augment__erasing=0.0)
_add("mixup", "Mixup", lambda c: c.task.mix.active and c.task.mix.mixup > 0, task__mix__mixup=0.0)
_add("cutmix", "CutMix", lambda c: c.task.mix.active and c.task.mix.cutmix > 0, task__mix__cutmix=0.0)
_add("label_smoothing", "label smoothing", lambda c: c.task.label_smoothing > 0, task__label_smoothing=0.0)
_add("stochastic_depth", "stochastic depth", lambda c: c.model.stochastic_depth > 0, model__stochastic_depth=0.0)
_add("dropout", "dropout", lambda c: c.model.dropout > 0, model__dropout=0.0)
_add("repeated_augmentation", "each image several times a batch", lambda c: c.sampler.repeats > 1, sampler__repeats=1)
_add("averaging", "average of the weights", lambda c: c.average_decay > 0, average_decay=0.0)
_add("warmup", "warm-up of the learning rate", lambda c: Duration.parse(c.schedule.warmup).amount > 0, schedule__warmup="0%")
_add("annealing", "annealing of the learning rate", lambda c: c.schedule.kind != "constant", schedule__kind="constant")
_add("weight_decay", "weight decay", lambda c: c.optimizer.weight_decay > 0, optimizer__weight_decay=0.0)
_add("clipping", "clipping of the gradients", lambda c: c.optimizer.clip_norm is not None, optimizer__clip_norm=None)
_add("muon", "Muon (AdamW in its place)", lambda c: c.optimizer.name == "muon", optimizer__name="adamw")
