"""What changed between formats of run folders: old runs go on by the rules that they were started with."""

from typing import Any

RULES: dict[int, dict[str, Any]] = {1: {"data.range": "byte"}}
"""By format, recipe keys that mean what such a run did where its recipe.toml does not say."""


def rules_of(written: int) -> dict[str, Any]:
    """Overrides by dotted key for the recipe of a run of this format; none for the present one."""
    return dict(RULES.get(written, {}))
