"""What is tried for the keys of a recipe, and what is said of a key that is silent."""

import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from remask.errors import UserError
from remask.recipe import recipe_keys

SAID = ("name", "title", "paper", "table", "expected", "command", "cost", "notes", "task")
"""What a recipe says of itself, and nothing is built from."""


def candidates(key: str, schema: type[BaseModel], now: Any, values: Mapping[str, list[Any]]) -> list[Any]:
    """Other values than the one at hand: all members of an enumeration, else what `values` or the type tells."""
    annotation = _annotation(key, schema)
    if choices := members(annotation):
        return [choice for choice in choices if choice != now]
    found = values.get(key) or _by_type(annotation, now)
    assert found, f"{key}: say what to try for it"
    return [next(value for value in found if value != now)]


def members(annotation: Any) -> list[Any]:
    """The members of an enumeration; of one that takes other values too, none."""
    arms = [arm for arm in _arms(annotation) if arm is not type(None)]
    if not all(arm is bool or typing.get_origin(arm) is Literal for arm in arms):
        return []
    return [choice for arm in arms for choice in ((False, True) if arm is bool else typing.get_args(arm))]


def _by_type(annotation: Any, now: Any) -> list[Any]:
    arms = _arms(annotation)
    if int in arms:
        return [now + 1 if isinstance(now, int) else 3]
    if float in arms:
        return [now / 2 if now else 0.25]
    return []


def _arms(annotation: Any) -> list[Any]:
    """The plain types of an annotation: of a union, of Annotated."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [arm for part in typing.get_args(annotation) for arm in _arms(part)]
    return _arms(typing.get_args(annotation)[0]) if origin is typing.Annotated else [annotation]


def _annotation(key: str, schema: type[BaseModel]) -> Any:
    first, _, rest = key.partition(".")
    field = schema.model_fields[first]
    if not rest:
        return field.annotation
    return _annotation(rest, next(arm for arm in _arms(field.annotation) if hasattr(arm, "model_fields")))


def value_of(recipe: Any, key: str) -> Any:
    """The value of a dotted key; None in a section that is off."""
    for name in key.split("."):
        recipe = getattr(recipe, name, None)
    return recipe


def leaves(schema: type[Any]) -> list[str]:
    """The keys that hold values, and none that holds keys; a target and teachers are given as a whole too."""
    known = [key for key in recipe_keys(schema) if not key.startswith("distill.teachers.") and key not in SAID]
    sections = {key for key in known if any(other.startswith(f"{key}.") for other in known)}
    return [key for key in known if key not in sections - {"method.target", "jd.target"}]


def silent(
    key: str, now: Any, tries: Sequence[Any], build: Callable[[str, Any], str], before: str, flag: str = ""
) -> str | None:
    """Why a key is silent; None where every value is seen in what is built, or refused by the key's full name or flag.

    "auto" and an unset enumeration stand for one of the other members, which may then be as it.
    """
    same, wrong = list[Any](), list[str]()
    for value in tries:
        try:
            if build(key, value) == before:
                same.append(value)
        except UserError as error:
            if not names(str(error), key, flag):
                wrong.append(f"{value!r} is refused without the key: {error}")
    stands_for = "auto" in (now, *tries) or (now is None and len(tries) > 1)
    if len(same) > stands_for or (same and len(tries) == 1):
        wrong.append(f"{same} changes nothing")
    return f"{key}: {'; '.join(wrong)}" if wrong else None


def names(line: str, key: str, flag: str = "") -> bool:
    """Whether a line of an error has the key in full, or its flag."""
    words = [key, *([flag] if flag else [])]
    return any(re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", line) for word in words)


__all__ = ["SAID", "candidates", "leaves", "members", "names", "silent", "value_of"]
