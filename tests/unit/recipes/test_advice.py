from __future__ import annotations

from typing import Any

import pytest

from kawara import models
from kawara.config import override
from kawara.recipes import RECIPES
from kawara.recipes.advice import advice
from kawara.recipes.known_results import KNOWN_RESULTS, nearest_results
from kawara.recipes.rates import rates, usual_rate


def codes(recipe: str, name: str, side: int = 32, *, num_images: int = 50_000, steps: int = 100, **asked: Any) -> list[str]:
    asked = {path.replace("__", "."): value for path, value in asked.items()}
    config = override(RECIPES[recipe](), {"model.name": name, "data.image_size": side} | asked)
    options = config.model.options if name.startswith("vit") else {}
    model = models.model_config(name, num_classes=10, image_size=side, **options)
    said = advice(config, model, asked, num_images=num_images, num_classes=10, image_size_px=side, steps_per_epoch=steps)
    assert all(remark.en and remark.ja for remark in said)
    return [remark.code for remark in said]


@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize(("name", "side"), [("vit_small_16", 224), ("vit_base_16", 224), ("vit_femto_conv_8", 24), ("resnet20", 32)])
def test_what_a_recipe_chose_itself_is_never_spoken_of(recipe, name, side):
    assert codes(recipe, name, side) == []


def test_the_narrow_heads_of_lucidrains_45_are_found():
    """dim 1024 with 64 heads is a head width of 16."""
    options = {"width": 1024, "heads": 64, "mlp_hidden": 2048, "depth": 6}
    assert codes("plain", "vit_tiny_32", 256, model__options=options) == ["narrow_heads"]
    assert codes("plain", "vit_tiny_32", 256, model__options=options | {"heads": 32}) == []


def test_patches_too_large_and_too_small_are_found_where_they_were_asked_for():
    assert codes("small", "vit_pico_8", 24, model__name="vit_pico_8") == ["few_tokens"]
    assert codes("small", "vit_pico_2", 128, model__name="vit_pico_2") == ["many_tokens"]
    assert codes("small", "vit_pico_8", 32, model__name="vit_pico_8") == []
    assert codes("small", "vit_pico_8", 24) == []


@pytest.mark.parametrize(
    ("recipe", "setting", "value", "found"),
    [
        ("deit", "optimizer__lr", 0.1, ["high optimizer.lr"]),
        ("deit", "optimizer__lr", 1e-3, []),
        ("deit", "optimizer__lr", 1e-7, ["low optimizer.lr"]),
        ("small", "optimizer__muon_lr", 0.5, ["high optimizer.muon_lr"]),
        ("small", "optimizer__muon_lr", 0.03, []),
        ("small", "batch_size", 64, []),
        ("plain", "schedule__warmup", "60 epochs", ["long_warmup"]),
    ],
)
def test_rates_and_warmups_that_seldom_go_well(recipe, setting, value, found):
    assert codes(recipe, "vit_small_16", 224, **{setting: value}) == found


def test_few_photos_and_few_steps():
    assert codes("small", "vit_femto_conv_16", 128, num_images=195) == ["few_images"]
    assert codes("small", "vit_femto_conv_8", 32, num_images=195) == []
    assert codes("small", "vit_femto_conv_8", 32, num_images=1899, steps=1, batch_size=1024) == ["few_steps"]


def test_usual_rates_are_those_of_their_sources():
    assert usual_rate("adamw", 4096, 768) == pytest.approx(4e-3)  # ViT took 3e-3 there, DeiT-B 1e-3 at 1,024
    assert usual_rate("adamw", 128, 96) == pytest.approx(3e-3)
    assert usual_rate("adamw", 64, 384) == pytest.approx(1e-3 / 2**0.5)
    assert usual_rate("sgd", 1024) == pytest.approx(0.4)
    assert usual_rate("sgd", 256, momentum=0.0) == pytest.approx(1.0)


@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize("width", [64, 192, 384, 1024])
def test_no_recipe_comes_near_a_rate_that_stops_a_run(recipe, width):
    config = RECIPES[recipe]()
    assert rates(config.optimizer, config.batch_size, width, frozen_backbone=recipe == "head")[0].excess < 3


def test_the_nearest_results_are_of_the_same_kind():
    near = nearest_results(2_000, 6, 32, grey=False, pretrained=False)
    assert near[0].data.startswith("CIFAR-10")
    assert all(not row.pretrained for row in near)
    assert nearest_results(1_000_000, 1000, 224, grey=False, pretrained=False) == []
    assert {row.data for row in nearest_results(300, 2, 224, grey=False, pretrained=True)} >= {"ants and bees"}


def test_every_known_result_is_a_fraction_with_a_command():
    assert all(0 < row.top1 < 1 and row.command.startswith("kawara train ") for row in KNOWN_RESULTS)
