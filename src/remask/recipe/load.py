"""Reading recipes: `extends`, environment and flags, merged key by key; every mistake is one line that says where."""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from remask.errors import UserError
from remask.recipe.schema import Recipe, recipe_keys
from remask.recipe.values import SHORTHANDS
from remask.textfiles import read_toml

FOLDER = Path(__file__).parent.parent / "recipes"
OPTIONAL = ("dm", "jd", "distill", "progress", "probe")
"""Sections that "on" and "off" switch."""

NOT_KEYS = ("REMASK_CACHE", "REMASK_GOLDEN")
"""Environment variables that are not recipe keys."""

ABOUT = ("name", "title", "table", "expected", "command", "cost", "notes")
"""What a file says of itself: `extends` does not pass it on, for another recipe's number is not this one's."""

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

Layer = tuple[str, dict[str, Any]]
"""Where keys come from, as an error names it, and the keys."""


def recipe_names(folder: Path = FOLDER) -> list[str]:
    """The recipes that come with remask, sorted; those of pre-training unless a task's folder is given."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def load_recipe(
    name_or_path: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Recipe:
    """A shipped recipe by name, or a TOML file, with `extends` followed. Recipe < environment < overrides.

    overrides    {"optim.epochs": 1, "dm": "off"} with values of the right type, or texts, ["optim.epochs=1"]
    environment  where REMASK_SECTION__KEY is looked up; the process's own by default, {} for none
    Raises UserError: unknown recipe or key, wrong value, broken or missing file, a circle of `extends`.
    """
    return load(Recipe, FOLDER, name_or_path, overrides, environment)


def load(
    schema: type[Any],
    folder: Path,
    name_or_path: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Any:
    """`load_recipe` for any schema, whose shipped recipes lie in `folder`."""
    path = _locate(str(name_or_path), Path(), folder)
    files = _files(path, (), folder)
    layers = [*files, *_variables(os.environ if environment is None else environment)]
    flags = overrides if isinstance(overrides, Mapping) else parse_settings(overrides)
    layers += [("", _nest(key, value)) for key, value in flags.items()]
    layers += _warmup_share(layers, len(files))
    known = recipe_keys(schema)
    merged: dict[str, Any] = {"name": path.stem}
    origin: dict[str, str] = {}
    for where, values in layers:
        for key in _leaves(values):
            if key not in known:
                fail(f"unknown key {key}" + (f" ({where})" if where else "") + f"; {_nearest_key(key, list(known))}")
            origin[key] = where
        merged = merge(merged, values)
    try:
        return schema.model_validate(merged)
    except ValidationError as error:
        fail(_first(error, known, origin))


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


def _warmup_share(layers: Sequence[Layer], files: int) -> list[Layer]:
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


def _locate(name: str, beside: Path, folder: Path) -> Path:
    """A path where it looks like one (relative to `beside`), else the shipped recipe of that name."""
    if name.endswith(".toml") or "/" in name or os.sep in name:
        return beside / Path(name).expanduser()
    if name not in (names := recipe_names(folder)):
        near = " or ".join(difflib.get_close_matches(name, names, 2))
        fail(f'unknown recipe "{name}"; ' + (f"did you mean {near}? " if near else "") + "remask recipes lists them")
    return folder / f"{name}.toml"


def _files(path: Path, children: tuple[Path, ...], folder: Path) -> list[Layer]:
    """The file and what it extends, parents first."""
    if path.resolve() in [child.resolve() for child in children]:
        fail(f"recipes extend each other in a circle: {' → '.join(file.name for file in (*children, path))}")
    try:
        values = read_toml(path, f"recipe file {path}")
    except FileNotFoundError:
        fail(f"recipe file {path} does not exist; remask recipes lists the recipes that need no file")
    except tomllib.TOMLDecodeError as error:
        fail(f"recipe file {path} is not valid TOML: {error}")
    except OSError as error:
        fail(f"recipe file {path} cannot be read: {error.strerror}")
    parent = values.pop("extends", None)
    if not isinstance(parent, str | None):
        fail(f"extends must be a recipe's name or file, not {parent} ({path})")
    layers = _files(_locate(parent, path.parent, folder), (*children, path), folder) if parent else []
    layers = [(where, {key: value for key, value in keys.items() if key not in ABOUT}) for where, keys in layers]
    return [*layers, (path.name if path.parent == folder else str(path), values)]


def _variables(environment: Mapping[str, str]) -> list[Layer]:
    """REMASK_OPTIM__EPOCHS=1 -> optim.epochs."""
    names = sorted(name for name in environment if name.startswith("REMASK_") and name not in NOT_KEYS)
    paths = {name: name.removeprefix("REMASK_").lower().replace("__", ".") for name in names}
    return [(name, _nest(path, _value(environment[name]))) for name, path in paths.items()]


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """The texts of `--set` as overrides: ["optim.epochs=1"] -> {"optim.epochs": 1}; the last of equal keys wins."""
    settings: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not path.strip() or not equals:
            fail(f'--set "{text}": write it as section.key=value, as in --set optim.epochs=10')
        settings[path.strip()] = _value(value.strip())
    return settings


def _value(text: str) -> Any:
    """A TOML value where it is one, else the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed["value"]
    return value if len(parsed) == 1 and isinstance(value, bool | int | float | str | list | dict) else text


def _nest(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of the keys that hold a value; an empty table is one."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _nearest_key(key: str, known: Sequence[str]) -> str:
    """The key that is most alike as a whole, or by its last part (`epochs` -> optim.epochs)."""

    def likeness(candidate: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        last = difflib.SequenceMatcher(None, key.split(".")[-1], candidate.split(".")[-1]).ratio()
        return max(whole, 0.95 * last), whole

    best = max(known, key=likeness)
    return f"did you mean {best}?" if likeness(best)[0] >= 0.6 else "remask show RECIPE prints the keys"


def _first(error: ValidationError, known: Mapping[str, str], origin: Mapping[str, str]) -> str:
    """The first problem in one line, and how many more there are."""
    problems: dict[str, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        path = ""
        for part in details["loc"]:  # what follows the key: an index, or the arm of a union
            path = longer if (longer := f"{path}.{part}".lstrip(".")) in known else path
        problems.setdefault(path, []).append(details)
    path, arms = next(iter(problems.items()))
    first, where = arms[0], origin.get(path)
    if first["type"] == "missing" and path in known and len(first["loc"]) == path.count(".") + 1:
        line = f'{path} is missing: {known[path]} Add it, or start from a recipe with extends = "mae-vit-b"'
    elif first["type"] == "value_error":
        sentence = str(first["ctx"]["error"])
        line = f"{path}: {sentence}" if "." in path else sentence  # a section's sentence names its keys itself
    elif all(arm["type"] in WANTED for arm in arms):
        wanted = " or ".join(dict.fromkeys(WANTED[arm["type"]].format(**arm.get("ctx", {})) for arm in arms))
        wanted = f"on, off or {wanted}" if path in OPTIONAL else wanted
        line = f"{path}: must be {wanted}, not {_shown(first['input'])}"
    else:
        line = f"{path}: {first['msg']}, not {_shown(first['input'])}"
    more = len(problems) - 1
    return line + (f" ({where})" if where else "") + (f", and {more} more" if more else "")


def _shown(value: Any) -> str:
    """The value as the user wrote it."""
    return "off" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def fail(line: str) -> NoReturn:
    """Raise the UserError that `line` is."""
    raise UserError(line) from None
