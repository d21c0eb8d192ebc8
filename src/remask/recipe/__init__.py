"""Recipes: a TOML file ⇄ one strict, frozen, typed configuration. Nothing here imports torch.

sections.py, schedule.py and distill.py define the keys and their values, schema.py checks combinations of keys, used.py
finds keys that have no effect in a recipe, load.py and layers.py read and merge (recipe < environment < flags),
messages.py formats errors, write.py writes the resolved recipe, variants.py derives one recipe from another (--method,
--smoke).
"""

from remask.recipe.load import load_recipe, parse_settings
from remask.recipe.naming import recipe_names
from remask.recipe.schema import METHODS, Recipe, recipe_keys
from remask.recipe.values import Target
from remask.recipe.variants import choose, method_label, method_overrides, shrink
from remask.recipe.write import dump

__all__ = [
    "METHODS",
    "Recipe",
    "Target",
    "choose",
    "dump",
    "load_recipe",
    "method_label",
    "method_overrides",
    "parse_settings",
    "recipe_keys",
    "recipe_names",
    "shrink",
]
