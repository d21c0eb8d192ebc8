"""Defaults of older formats of run folders, with which old runs continue."""

from typing import Any

RULES: dict[int, dict[str, Any]] = {1: {"data.range": "byte", "masking.count": "mae"}}
"""Format → values of recipe keys that reproduce such a run if its recipe.toml does not set them."""


def rules_of(written: int, *sections: str) -> dict[str, Any]:
    """Overrides {dotted key: value} for the recipe of a run of format `written`; {} for the present format.

    sections   limits the overrides to these sections of a recipe; none given: all
    """
    rules = RULES.get(written, {})
    return {key: value for key, value in rules.items() if not sections or key.split(".")[0] in sections}
