"""The recipes of tasks and codebooks, as a command line or a script asks for them. Free of torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.commands.paths import absolute, relative_patterns, resolve_spec
from remask.errors import UserError
from remask.files.paths import home_expanded
from remask.recipe import Recipe, choose
from remask.recipe.downstream import TASKS, Downstream
from remask.recipe.load import load, parse_settings
from remask.recipe.naming import FOLDER

DEFAULT_RECIPES = {"finetune": "small", "segment": "small", "detect": "small"}
PATHS = ("source", "val", "masks", "val_masks", "annotations", "val_annotations")
"""Keys of [data] that hold paths."""


def choose_task_recipe(
    task: str, start: str | None, recipe: str | None, overrides: Mapping[str, Any] | None, settings: Sequence[str]
) -> Any:
    """The recipe of "finetune", "segment" or "detect", with absolute paths. Raises UserError for any mistake in it.

    start       RUN, or mae:FILE, timm:NAME and the like; None where the recipe says it
    recipe      a name, or a TOML file; `overrides` and then `settings` go over it
    """
    given = {**(overrides or {}), **parse_settings(settings)}
    if start is not None:
        given["model.source"] = _network_of(start)
    return resolve_task_paths(load(TASKS[task], FOLDER / task, recipe or DEFAULT_RECIPES[task], given))


def resolve_task_paths(recipe: Any) -> Any:
    """The recipe with its local paths made absolute, so that a run can be resumed from anywhere."""
    paths: dict[str, Any] = {key: absolute(getattr(recipe.data, key)) for key in PATHS if hasattr(recipe.data, key)}
    paths["exclude"] = relative_patterns(recipe.data.source, recipe.data.exclude)
    model = recipe.model.model_copy(update={"source": resolve_spec(recipe.model.source)})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=paths), "model": model})


def on_device(recipe: Downstream, device: str | None) -> Downstream:
    """The recipe for another device; the same recipe where none is named."""
    if device is None:
        return recipe
    return recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"device": device})})


def choose_codebook_recipe(recipe: str, target: str, vocabulary: int | None, settings: Sequence[str]) -> Recipe:
    """The recipe whose [method] target is a codebook to be fitted; arguments as those of `codebook`."""
    over = {"over": "features", "teacher": target} if ":" in target else {"over": target}
    words = {"vocabulary": vocabulary} if vocabulary else {}
    tokens = {"kind": "tokens", "tokenizer": "codebook", "file": None, **words, **over}
    return choose(recipe, {"method.name": "beit", "method.target": tokens}, settings=settings)


def _network_of(start: str) -> str:
    """The specification of the network to start from: run:FOLDER for a folder, any other as it is.

    Raises UserError for what is neither a folder nor a specification.
    """
    if Path(home_expanded(start)).is_dir():
        return f"run:{start}"
    if ":" not in start:
        raise UserError(f"{start} is no run: give a folder that --out named, or mae:FILE, timm:NAME, untrained:NAME")
    return start


__all__ = ["choose_codebook_recipe", "choose_task_recipe", "on_device", "resolve_task_paths"]
