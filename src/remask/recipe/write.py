"""Writes a resolved recipe as TOML that loads to an equal one; the standard library only reads TOML."""

import json
import re
from collections.abc import Mapping
from typing import Any

from remask.files.escaping import marked
from remask.recipe.used import unused
from remask.recipe.values import Section


def dump(recipe: Section) -> str:
    """The recipe as TOML text, without keys that are unset, off, or without effect in this recipe."""
    values = recipe.model_dump(exclude_none=True)
    for key in unused(recipe):
        *sections, name = key.split(".")
        inner = values
        for section in sections:
            inner = inner.get(section, {})
        inner.pop(name, None)
    return _table(values, "")


def _table(values: Mapping[str, Any], path: str) -> str:
    """A table as TOML text: plain keys first, then nested tables, as TOML requires."""
    lines = [f"[{path}]"] if path else []
    lines += [f"{key} = {literal(value)}" for key, value in values.items() if not isinstance(value, Mapping)]
    tables = {f"{path}.{key}".lstrip("."): value for key, value in values.items() if isinstance(value, Mapping)}
    return "\n".join(["\n".join(lines) + "\n", *(_table(value, name) for name, value in tables.items())])


def literal(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, str):  # JSON's escapes are TOML's; DEL is the one character that only TOML refuses
        return json.dumps(marked(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {literal(inner)}' for key, inner in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else literal(key)


__all__ = ["dump", "literal"]
