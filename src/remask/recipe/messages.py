"""What is said of a recipe that does not load: one line, which names the key, the wish and the place."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from remask.errors import UserError

OPTIONAL = ("dm", "jd", "distill", "progress", "probe")
"""Sections that "on" and "off" switch."""

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
"""pydantic's error types as the end of "must be …"."""


def nearest_key(key: str, known: Iterable[str], where: str = "") -> str:
    """What to type instead: the key that is most alike as a whole, or by its last part (`epochs` -> optim.epochs).

    where   a file, or the variable REMASK_… in which the key was met
    """
    variable = where.startswith("REMASK_")
    words = [*known, *(("cache",) if variable else ())]
    section, _, own = key.rpartition(".")
    within = [word.rpartition(".")[2] for word in words if section and word.rpartition(".")[0] == section]

    def likeness(candidate: str) -> tuple[float, float]:
        inner, _, last = candidate.rpartition(".")
        same = difflib.SequenceMatcher(None, own, last).ratio()
        alike = difflib.SequenceMatcher(None, key.replace("_", "."), candidate.replace("_", ".")).ratio()
        return max(same if inner == section else alike, 0.95 * same), alike

    best = max(words, key=likeness)
    if likeness(best)[0] < 0.6:
        return f"[{section}] has {', '.join(within)}" if within else "remask show RECIPE prints the keys"
    spelt = f"REMASK_{best.upper().replace('.', '__')}"
    joined = variable and "." not in key and key.startswith(f"{best.partition('.')[0]}_")  # one stroke where two belong
    return f"did you mean {spelt if joined or best == 'cache' else best}?"


def first_problem(error: ValidationError, known: Mapping[str, str], origin: Mapping[str, str]) -> str:
    """The first problem in one line, and how many more there are."""
    problems: dict[str, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        path = ""
        for step in details["loc"]:  # what follows the key: an index, or the arm of a union
            path = longer if (longer := f"{path}.{step}".lstrip(".")) in known else path
        problems.setdefault(path, []).append(details)
    path, arms = next(iter(problems.items()))
    first, where = arms[0], origin.get(path)
    if first["type"] == "missing" and path in known and len(first["loc"]) == path.count(".") + 1:
        line = f'{path} is missing: {known[path]} Add it, or start from a recipe with extends = "mae-vit-b"'
    elif first["type"] == "value_error":
        sentence = str(first["ctx"]["error"])
        own = f"{path}.{sentence.partition(' ')[0].rstrip(',')}" in known  # it begins with a key of its section
        line = f"{path}.{sentence}" if own else f"{path}: {sentence}" if "." in path else sentence
    elif all(arm["type"] in WANTED for arm in arms):
        wanted = " or ".join(dict.fromkeys(WANTED[arm["type"]].format(**arm.get("ctx", {})) for arm in arms))
        wanted = f"on, off or {wanted}" if path in OPTIONAL else wanted
        line = f"{path}: must be {wanted}, not {_shown(first['input'])}{_as_list(first)}"
    else:
        line = f"{path}: {first['msg']}, not {_shown(first['input'])}"
    more = len(problems) - 1
    return line + (f" ({where})" if where else "") + (f", and {more} more" if more else "")


def _as_list(details: ErrorDetails) -> str:
    """How a list is written, where its items were given alone."""
    text = details["input"]
    return f": write [{text}]" if details["type"] == "list_type" and isinstance(text, str) and "," in text else ""


def _shown(value: Any) -> str:
    """The value as the user wrote it."""
    return "off" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def fail(line: str) -> NoReturn:
    """Raise the UserError that `line` is."""
    raise UserError(line) from None


__all__ = ["OPTIONAL", "fail", "first_problem", "nearest_key"]
