"""Recipes: functions that return a complete RunConfig, and the choices to make when nobody did."""

from kawara.recipes.classification import RECIPES, deit, finetune, head, plain, small

__all__ = ["RECIPES", "deit", "finetune", "head", "plain", "small"]
