"""What changed between formats of run folders: old runs go on by the rules that they were started with."""

from typing import Any

RULES: dict[int, dict[str, Any]] = {1: {"data.range": "byte", "masking.count": "mae"}}
"""By format, recipe keys that mean what such a run did where its recipe.toml does not say."""


def rules_of(written: int, *sections: str) -> dict[str, Any]:
    """Overrides by dotted key for the recipe of a run of this format; none for the present one.

    sections   those that the recipe has, where it has not all of pre-training's
    """
    rules = RULES.get(written, {})
    return {key: value for key, value in rules.items() if not sections or key.split(".")[0] in sections}
