"""Recipes: functions that return a complete RunConfig, and the choice between them when nobody chose."""

from .choice import Choice, choose
from .classification import RECIPES, deit, plain, small

__all__ = ["RECIPES", "Choice", "choose", "deit", "plain", "small"]
