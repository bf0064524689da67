"""Recipes: functions that return a complete RunConfig, and the choice between them when nobody chose."""

from kawara.recipes.choice import Choice, choose
from kawara.recipes.classification import RECIPES, deit, plain, small

__all__ = ["RECIPES", "Choice", "choose", "deit", "plain", "small"]
