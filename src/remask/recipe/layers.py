"""Layers of recipe keys, files first and flags last: how they merge, and what one of them sets in vain."""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from remask.recipe.messages import OPTIONAL, fail
from remask.recipe.used import complaint
from remask.recipe.values import SHORTHANDS

Layer = tuple[str, dict[str, Any]]
"""Where keys come from, as an error names it, and the keys."""


def merge(base: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`patch` over `base`, key by key. "off" unsets a key or removes a section; "on" keeps a section or adds it."""
    merged = dict(base)
    for key, value in patch.items():
        if value == "off" or (key in OPTIONAL and value is False):
            value = None
        elif key in OPTIONAL and value in ("on", True):
            value = {}
        old = merged.get(key)
        if isinstance(value, Mapping):
            old = SHORTHANDS.get(old, {}) if isinstance(old, str) else old
            kept = dict(old) if isinstance(old, Mapping) and value.get("kind") in (None, old.get("kind")) else {}
            merged[key] = merge(kept, value)  # a target of another kind starts anew
        else:
            merged[key] = value
    return merged


def warmup_share(layers: Sequence[Layer], files: int) -> list[Layer]:
    """A run made longer or shorter by a flag warms up for the same share of it, unless the warm-up was given too."""

    def last(key: str, among: Sequence[Layer]) -> Any:
        found = [optim[key] for _, values in among if isinstance(optim := values.get("optim"), dict) and key in optim]
        return found[-1] if found else None

    planned, warmup = last("epochs", layers[:files]), last("warmup_epochs", layers[:files])
    epochs, given = last("epochs", layers[files:]), last("warmup_epochs", layers[files:])
    numbers = all(isinstance(n, int | float) for n in (planned, warmup, epochs))
    if not numbers or given is not None or not planned:
        return []
    return [("", {"optim": {"warmup_epochs": round(warmup * epochs / planned, 3)}})]


def nest(path: str, value: Any) -> dict[str, Any]:
    """A value under its dotted path: "a.b", 1 -> {"a": {"b": 1}}."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of the keys that hold a value; an empty table is one."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def refuse_unused(schema: type[Any], recipe: Any, layers: Sequence[Layer], files: int, kept: Container[str]) -> None:
    """Raise UserError for a key that is set in vain, where it is set.

    A file is judged as it stands, with what it extends: what it says for its own method may be of no use to the method
    of a child or of a flag, and is then inherited in vain. Variables and flags are judged by the whole recipe.

    files   so many layers are files
    kept    files that are passed over: what a run keeps of its recipe may hold every key
    """
    merged, waiting = {"name": ""}, dict[str, str]()
    for number, (where, values) in enumerate(layers, 1):
        merged = merge(merged, values)
        waiting |= {key: where for key in leaves(values) if where not in kept and not _unset(values, key)}
        judged = _valid(schema, merged) if number <= files else recipe if number == len(layers) else None
        if judged is None:  # a file that only a child makes whole, or a flag with others behind it
            continue
        if found := complaint(judged, waiting):
            fail(found[1] + (f" ({waiting[found[0]]})" if waiting[found[0]] else ""))
        waiting = {}


def _valid(schema: type[Any], values: Mapping[str, Any]) -> Any:
    """The recipe of these keys; None where they are none yet."""
    try:
        return schema.model_validate(values)
    except ValidationError:
        return None


def _unset(values: Any, key: str) -> bool:
    """Whether a dotted key is only taken back."""
    for name in key.split("."):
        values = values[name]
    return values in ("off", None) or (key in OPTIONAL and values is False)


__all__ = ["Layer", "leaves", "merge", "nest", "refuse_unused", "warmup_share"]
