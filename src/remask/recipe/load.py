"""Reading recipes: `extends`, environment and flags, merged key by key; errors are one line and name the origin."""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from remask.files.text import read_toml
from remask.recipe.layers import Layer, leaves, merge, nest, refuse_long, refuse_unused, warmup_share
from remask.recipe.messages import fail, first_problem, nearest_key
from remask.recipe.naming import PRETRAIN, Place, locate
from remask.recipe.papers import with_command, with_paper
from remask.recipe.schema import Recipe, recipe_keys
from remask.recipe.used import reset

NOT_KEYS = ("REMASK_CACHE", "REMASK_GOLDEN")
"""Environment variables that are not recipe keys."""

ABOUT = ("name", "title", "table", "expected", "command", "cost", "notes")
"""Keys that describe a recipe; `extends` does not inherit them, for published numbers belong to one recipe."""


def load_recipe(
    name_or_path: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Recipe:
    """A shipped recipe by name, or a TOML file, with `extends` followed. Recipe < environment < overrides.

    overrides    {"optim.epochs": 1, "dm": "off"} with values of the right type, or texts, ["optim.epochs=1"]
    environment  variables REMASK_SECTION__KEY; None: those of the process, {}: none
    strict       refuse keys without effect in files and flags; the recipe.toml of a run may contain them
    Raises UserError: unknown recipe or key, wrong value, broken or missing file, circular `extends`, a key that the
    chosen method or backbone does not use.
    """
    return load(Recipe, PRETRAIN, name_or_path, overrides, environment, strict)


def load(
    schema: type[Any],
    folder: Path,
    name_or_path: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Any:
    """`load_recipe` for any schema with shipped recipes in `folder`. Keys without effect are reset to defaults."""
    place = locate(str(name_or_path), Path(), folder)
    files = _files(place, (), folder)
    layers = [*files, *_variables(os.environ if environment is None else environment)]
    flags = overrides if isinstance(overrides, Mapping) else parse_settings(overrides)
    layers += [("", nest(key, value)) for key, value in flags.items()]
    for where, values in layers:
        refuse_long(values, where)
    layers += warmup_share(layers, len(files))
    known = recipe_keys(schema)
    merged: dict[str, Any] = {"name": place.row or place.path.stem}
    origin: dict[str, str] = {}
    for where, values in layers:
        for key in leaves(values):
            if key == "task" and key not in known:
                fail(f"{where} is a recipe of remask {values[key]}: give it to that command, as --recipe {where}")
            if key not in known:
                fail(f"unknown key {key}" + (f" ({where})" if where else "") + f"; {nearest_key(key, known, where)}")
            origin[key] = where
        merged = merge(merged, values)
    try:
        recipe = schema.model_validate(merged)
    except ValidationError as error:
        fail(first_problem(error, known, origin))
    except UnicodeEncodeError as error:  # pydantic's, for a word that must be one of several
        fail(f"{error.object!r:.80} holds bytes that are no UTF-8, which a path alone may hold: write it anew")
    if strict:
        of_runs = {where for where, _ in files if _of_run(Path(where))}
        refuse_unused(schema, recipe, layers, len(files), of_runs)
    recipe = reset(recipe)
    if isinstance(recipe, Recipe):
        recipe = with_paper(with_command(recipe) if place.path.is_relative_to(folder) else recipe)
    return recipe


def _files(place: Place, children: tuple[Path, ...], folder: Path) -> list[Layer]:
    """Layers of a file and the files it extends, parents first. children: files on the way, to detect circles."""
    path, row = place
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
    if row is not None:
        values = merge(values, values.pop("rows")[row])
    parent = values.pop("extends", None)
    if not isinstance(parent, str | None):
        fail(f"extends must be a recipe's name or file, not {parent} ({path})")
    layers = _files(locate(parent, path.parent, folder), (*children, path), folder) if parent else []
    layers = [(where, {key: value for key, value in keys.items() if key not in ABOUT}) for where, keys in layers]
    shipped = row or (path.name if path.parent == folder else None)
    return [*layers, (shipped or str(path), values)]


def _variables(environment: Mapping[str, str]) -> list[Layer]:
    """Layers of environment variables: REMASK_OPTIM__EPOCHS=1 -> optim.epochs."""
    names = sorted(name for name in environment if name.startswith("REMASK_") and name not in NOT_KEYS)
    if empty := [name for name in names if not environment[name].strip()]:
        fail(f"{empty[0]} is empty: give it a value, or unset it")
    paths = {name: name.removeprefix("REMASK_").lower().replace("__", ".") for name in names}
    return [(name, nest(path, _value(environment[name]))) for name, path in paths.items()]


def variables(environment: Mapping[str, str]) -> dict[str, Any]:
    """The keys that environment variables set, as overrides: REMASK_OPTIM__EPOCHS=1 -> {"optim.epochs": 1}."""
    layers = [values for _, values in _variables(environment)]
    return {key: _at(values, key) for values in layers for key in leaves(values)}


def _at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values[key]
    return values


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
    """The text parsed as a TOML value, or else the text itself; .5 is taken as 0.5, which TOML does not."""
    parsed = _toml(text) or _toml(re.sub(r"(^|[\[,\s])([+-]?)[.](?=[0-9])", r"\1\g<2>0.", text))
    if parsed is None:
        return text
    value = parsed["value"]
    return value if len(parsed) == 1 and isinstance(value, bool | int | float | str | list | dict) else text


def _toml(text: str) -> dict[str, Any] | None:
    """{"value": the text as TOML}; None if it is none."""
    try:
        return tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # no TOML, a number of more than 4,300 digits, or a thousand brackets
        return None


def _of_run(path: Path) -> bool:
    """Whether a file is the recipe.toml of a run folder."""
    return path.name == "recipe.toml" and (path.parent / "env.json").is_file()
