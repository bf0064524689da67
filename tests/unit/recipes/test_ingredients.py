"""Every ingredient that a recipe has can be taken out, alone."""

from __future__ import annotations

import re

import pytest

from kawara.config import override
from kawara.recipes import RECIPES
from kawara.recipes.ingredients import INGREDIENTS, ingredients_of


@pytest.mark.parametrize("name", list(RECIPES))
def test_taking_one_out_leaves_the_others_in(name):
    config = RECIPES[name]()
    has = ingredients_of(config)
    for ingredient in has:
        without = override(config, ingredient.without)
        assert ingredients_of(without) == [other for other in has if other is not ingredient]


def test_each_is_explained_in_both_languages():
    for name in INGREDIENTS:
        ingredient = INGREDIENTS[name]
        assert re.fullmatch(r"[A-Z].*\.", ingredient.explanation), name
        assert re.fullmatch(r".*[ぁ-ん].*。", ingredient.explanation_ja), name
        assert re.fullmatch(r"\d{4}\.\d{4,5}", ingredient.arxiv), name
        assert ingredient.description_ja, name


def test_deit_has_what_its_table_takes_out():
    names = {ingredient.name for ingredient in ingredients_of(RECIPES["deit"]())}
    assert names >= {"rand_augment", "mixup", "cutmix", "erasing", "stochastic_depth", "repeated_augmentation", "averaging"}
    assert "muon" not in names


def test_each_is_in_some_configuration():
    everything = override(
        RECIPES["deit"](),
        {
            "augment.translation": 0.1,
            "augment.three_augment": True,
            "augment.color_jitter": 0.3,
            "model.dropout": 0.1,
            "optimizer.clip_norm": 1.0,
            "optimizer.name": "muon",
        },
    )
    assert [ingredient.name for ingredient in ingredients_of(everything)] == list(INGREDIENTS)
