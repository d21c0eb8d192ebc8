"""Layers of recipe keys, files first and flags last: merging them, and checking for keys without effect."""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from remask.recipe.messages import OPTIONAL, fail
from remask.recipe.used import complaint
from remask.recipe.values import SHORTHANDS

Layer = tuple[str, dict[str, Any]]
"""(origin of keys, as errors name it; the keys as nested tables)."""


def merge(base: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`base` updated by `patch`, recursively. "off" unsets a key or removes a section; "on" keeps or adds a section."""
    merged = dict(base)
    for key, value in patch.items():
        if value == "off" or (key in OPTIONAL and value is False):
            value = None
        elif key in OPTIONAL and value in ("on", True):
            value = {}
        old = merged.get(key)
        if isinstance(value, Mapping):
            old = SHORTHANDS.get(old, {}) if isinstance(old, str) else old
            inherited = dict(old) if isinstance(old, Mapping) and value.get("kind") in (None, old.get("kind")) else {}
            merged[key] = merge(inherited, value)  # a target of another kind inherits no keys
        else:
            merged[key] = value
    return merged


def warmup_share(layers: Sequence[Layer], files: int) -> list[Layer]:
    """A layer that keeps the files' share of warm-up if flags change the epochs but not the warm-up; else []."""

    def last(key: str, among: Sequence[Layer]) -> Any:
        found = [optim[key] for _, values in among if isinstance(optim := values.get("optim"), dict) and key in optim]
        return found[-1] if found else None

    planned, warmup = last("epochs", layers[:files]), last("warmup_epochs", layers[:files])
    epochs, given_warmup = last("epochs", layers[files:]), last("warmup_epochs", layers[files:])
    numbers = all(isinstance(n, int | float) for n in (planned, warmup, epochs))
    if not numbers or given_warmup is not None or not planned:
        return []
    return [("", {"optim": {"warmup_epochs": round(warmup * epochs / planned, 3)}})]


def nest(path: str, value: Any) -> dict[str, Any]:
    """A value under its dotted path: "a.b", 1 -> {"a": {"b": 1}}."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the dotted paths of all values; an empty table counts as a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def refuse_long(value: Any, where: str, key: str = "") -> None:
    """Raise UserError for a whole number of more than 64 bits in a layer, which no float could stand for."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        fail(f"{key}: a number of {len(str(abs(value)))} digits is too large" + (f" ({where})" if where else ""))
    if isinstance(value, Mapping):
        for name, entry in value.items():
            refuse_long(entry, where, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for entry in value:
            refuse_long(entry, where, key)


def refuse_unused(schema: type[Any], recipe: Any, layers: Sequence[Layer], files: int, kept: Container[str]) -> None:
    """Raise UserError for a key that has no effect in the layer that sets it.

    A file is checked together with the files it extends: a key for its own method may have no effect with the method of
    a child or a flag, and is then silently inherited. Variables and flags are checked against the full recipe.

    files   number of layers that are files
    kept    origins that are not checked: the recipe.toml of a run may set every key
    """
    merged, pending = {"name": ""}, dict[str, str]()
    for number, (where, values) in enumerate(layers, 1):
        merged = merge(merged, values)
        pending |= {key: where for key in leaves(values) if where not in kept and not _unset(values, key)}
        checked = _valid(schema, merged) if number <= files else recipe if number == len(layers) else None
        if checked is None:  # a file that is valid only with its child, or a flag before the last
            continue
        if problem := complaint(checked, pending):
            fail(problem[1] + (f" ({pending[problem[0]]})" if pending[problem[0]] else ""))
        pending = {}


def _valid(schema: type[Any], values: Mapping[str, Any]) -> Any:
    """The recipe of these keys; None if they are not valid."""
    try:
        return schema.model_validate(values)
    except ValidationError:
        return None


def _unset(values: Any, key: str) -> bool:
    """Whether the value of a dotted key unsets it."""
    for name in key.split("."):
        values = values[name]
    return values in ("off", None) or (key in OPTIONAL and values is False)


__all__ = ["Layer", "leaves", "merge", "nest", "refuse_long", "refuse_unused", "warmup_share"]
