"""Finds the file of a recipe by name or path, and suggests names for unknown ones."""

import difflib
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from remask.files.paths import home_expanded
from remask.files.text import read_toml
from remask.recipe.messages import fail
from remask.recipe.sections import METHODS

FOLDER = Path(__file__).parent.parent / "recipes"
"""Folder of the shipped recipes, with a folder for each command that trains."""
PRETRAIN = FOLDER / "pretrain"
COMMANDS = ("finetune", "segment", "detect")
"""The commands of downstream tasks."""


class Place(NamedTuple):
    """Location of a recipe: a file, and the name of a row if the file holds a paper's table."""

    path: Path
    row: str | None = None


@cache
def _rows(folder: Path) -> dict[str, Path]:
    """{recipe name: file} of the files in tables/, in which `[rows.NAME]` overrides the keys common to all rows."""
    files = sorted((folder / "tables").glob("*.toml"))
    return {name: path for path in files for name in read_toml(path, f"recipe file {path}")["rows"]}


def recipe_names(folder: Path = PRETRAIN) -> list[str]:
    """Names of the shipped recipes in `folder`, sorted."""
    return sorted([*(path.stem for path in folder.glob("*.toml")), *_rows(folder)])


def locate(name: str, beside: Path, folder: Path) -> Place:
    """The recipe at a path (relative to `beside`) if `name` looks like one, else the shipped recipe of that name.

    Raises UserError, with a suggestion, if there is none.
    """
    if name.endswith(".toml") or "/" in name or os.sep in name:
        path = beside / Path(home_expanded(name))
        if not path.exists():
            fail(f"recipe file {path} does not exist; {_instead(Path(name).stem, folder)}")
        if (path / "recipe.toml").is_file():
            fail(f"recipe file {path} cannot be read: it is a run, whose recipe is {path / 'recipe.toml'}")
        return Place(path)
    if name in (rows := _rows(folder)):
        return Place(rows[name], name)
    if name not in recipe_names(folder):
        fail(f'unknown recipe "{name}"; {_instead(name, folder)}')
    return Place(folder / f"{name}.toml")


def _instead(name: str, folder: Path) -> str:
    """A suggestion for an unknown name."""
    path, names = Path(name), recipe_names(folder)
    if name in names:
        return f"{name} without a folder is one that needs no file"
    owners = [task for task in COMMANDS if folder != FOLDER / task and name in recipe_names(FOLDER / task)]
    if owners:
        return f"{name} is a recipe of {', '.join(owners)}, as in remask {owners[0]} RUN --recipe {name}"
    if folder != PRETRAIN and name in recipe_names():
        return f"{name} is a recipe of pretrain, as in remask pretrain --recipe {name}; {folder.name} has {_few(names)}"
    if (path / "recipe.toml").is_file():
        return f"{name} is a folder with one: did you mean {name}/recipe.toml?"
    for file in (Path(f"{name}.toml"), path):
        if file.is_file():
            return f"did you mean the file ./{file}?"
    near = [known for known in names if f"-{name}-" in f"-{known}-"] or difflib.get_close_matches(name, names, 2)
    near = near or [known for known in names if name and name in known]
    near.sort(key=lambda known: (not known.startswith(name), len(known)))
    method = f", or --method {name}" if name in METHODS and folder == PRETRAIN else ""
    return (f"did you mean {_few(near, ' or ')}{method}? " if near else "") + "remask recipes lists them"


def _few(names: list[str], word: str = ", ") -> str:
    return word.join(names[:3])


__all__ = ["FOLDER", "PRETRAIN", "Place", "locate", "recipe_names"]
