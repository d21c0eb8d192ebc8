"""Error messages for invalid recipes: one line with the key, the expected value and the origin."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from remask.errors import UserError

OPTIONAL = ("dm", "jd", "uniformity", "distill", "progress", "probe")
"""Sections that "on" and "off" turn on and off."""

WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "model_type": "a section of keys",
    "finite_number": "a finite number",
    "string_too_short": "text",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
}
"""pydantic's error type → end of "must be …"."""


def nearest_key(key: str, known: Iterable[str], where: str = "") -> str:
    """A suggestion for an unknown key: the most similar one, in full or by its last part (`epochs` -> optim.epochs).

    where   the origin of the key: a file, or a variable REMASK_…
    """
    variable = where.startswith("REMASK_")
    words = [*known, *(("cache",) if variable else ())]
    section, _, name = key.rpartition(".")
    keys_of_section = [word.rpartition(".")[2] for word in words if section and word.rpartition(".")[0] == section]

    def score(candidate: str) -> tuple[float, float]:
        inner, _, last = candidate.rpartition(".")
        last_similarity = difflib.SequenceMatcher(None, name, last).ratio()
        similarity = difflib.SequenceMatcher(None, key.replace("_", "."), candidate.replace("_", ".")).ratio()
        return max(last_similarity if inner == section else similarity, 0.95 * last_similarity), similarity

    best = max(words, key=score)
    if score(best)[0] < 0.6:
        return (
            f"[{section}] has {', '.join(keys_of_section)}" if keys_of_section else "remask show RECIPE prints the keys"
        )
    spelt = f"REMASK_{best.upper().replace('.', '__')}"
    joined = (
        variable and "." not in key and key.startswith(f"{best.partition('.')[0]}_")
    )  # a single underscore instead of two
    return f"did you mean {spelt if joined or best == 'cache' else best}?"


def first_problem(error: ValidationError, known: Mapping[str, str], origin: Mapping[str, str]) -> str:
    """A line about the first problem, with the number of further ones.

    known    {key: help}     origin   {key: where it was set}
    """
    problems: dict[str, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        path = ""
        for step in details["loc"]:  # a key may be followed by an index, or the arm of a union
            path = longer if (longer := f"{path}.{step}".lstrip(".")) in known else path
        problems.setdefault(path, []).append(details)
    path, arms = next(iter(problems.items()))
    first, where = arms[0], origin.get(path)
    if first["type"] == "missing" and path in known and len(first["loc"]) == path.count(".") + 1:
        line = f'{path} is missing: {known[path]} Add it, or start from a recipe with extends = "mae-vit-b"'
    elif first["type"] == "value_error":
        sentence = str(first["ctx"]["error"])
        names_key = (
            f"{path}.{sentence.partition(' ')[0].rstrip(',')}" in known
        )  # the sentence begins with a key of the section
        line = f"{path}.{sentence}" if names_key else f"{path}: {sentence}" if "." in path else sentence
    elif all(arm["type"] in WANTED for arm in arms):
        expected = " or ".join(dict.fromkeys(WANTED[arm["type"]].format(**arm.get("ctx", {})) for arm in arms))
        expected = f"on, off or {expected}" if path in OPTIONAL else expected
        line = f"{path}: must be {expected}, not {_shown(first['input'])}{_as_list(first)}"
    else:
        line = f"{path}: {first['msg']}, not {_shown(first['input'])}"
    more = len(problems) - 1
    return line + (f" ({where})" if where else "") + (f", and {more} more" if more else "")


def _as_list(details: ErrorDetails) -> str:
    """How to write a list, if the value is its items as text; else empty."""
    text = details["input"]
    if details["type"] == "list_type" and isinstance(text, str) and text.startswith("["):
        return ': words in a list are written in quotes, as in [0, "end"]'
    return f": write [{text}]" if details["type"] == "list_type" and isinstance(text, str) and "," in text else ""


def _shown(value: Any) -> str:
    """The value as text in TOML's notation."""
    return "off" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def fail(line: str) -> NoReturn:
    """Raise UserError(line)."""
    raise UserError(line) from None


__all__ = ["OPTIONAL", "fail", "first_problem", "nearest_key"]
