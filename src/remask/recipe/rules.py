"""The form of a rule for keys without effect, and the rules that targets have, of whichever section."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from remask.recipe.values import KEYS


class Rule(NamedTuple):
    """Keys that have an effect in some recipes only.

    keys    dotted keys, separated by spaces; a section includes its keys
    on      the deciding key
    used    recipe -> whether the keys have an effect
    by      owner of the keys, as the end of "it belongs to …"
    """

    keys: str
    on: str
    used: Callable[[Any], bool]
    by: str


def target_rules(section: str, file: bool) -> tuple[Rule, ...]:
    """Rules for keys of a target by its kind and, with `file`, for keys of a tokenizer by whether it has a file."""
    target = f"{section}.target"

    def target_of(recipe: Any) -> Any:
        return getattr(recipe, section).target

    def of_kind(kinds: Sequence[str]) -> Callable[[Any], bool]:
        return lambda recipe: not getattr(recipe, section) or target_of(recipe).kind in kinds

    kinds = tuple(
        Rule(f"{target}.{key}", f"{target}.kind", of_kind(kinds), f"targets of the kind {' or '.join(kinds)}")
        for key, kinds in KEYS.items()
    )
    tokens = (
        Rule(
            f"{target}.over {target}.teacher {target}.weights", f"{target}.file",
            lambda recipe: target_of(recipe).kind != "tokens" or target_of(recipe).file is None,
            "a codebook without a file, which is fitted first",
        ),
        Rule(
            f"{target}.weights", f"{target}.over",
            lambda recipe: target_of(recipe).kind != "tokens" or target_of(recipe).over == "features",
            'a codebook over = "features" of a teacher',
        ),
        Rule(
            f"{target}.vocabulary", f"{target}.file",
            lambda recipe: (
                target_of(recipe).kind != "tokens"
                or target_of(recipe).unfitted
                or target_of(recipe).tokenizer == "stored"
            ),
            "a codebook without a file, and stored ids: the file tells it",
        ),
    )  # fmt: skip
    return kinds + tokens if file else kinds


__all__ = ["Rule", "target_rules"]
