"""Opens existing runs: the folder and its recipe. Free of torch."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.files.escaping import quoted
from remask.files.text import read_toml
from remask.recipe import Recipe, load_recipe
from remask.recipe.changes import refuse_silent
from remask.recipe.downstream import TASKS
from remask.recipe.formats import rules_of
from remask.recipe.load import load
from remask.recipe.naming import FOLDER
from remask.training.changed_settings import changed_settings
from remask.training.run_folder import REPORT, RunFolder, is_task_run


def open_run(path: Path, settings: Mapping[str, Any] | None = None) -> tuple[RunFolder, Recipe]:
    """A pre-training run's folder and recipe, with what was changed on the way, and now with `settings`.

    Raises UserError for other folders, runs of downstream tasks, and settings without effect.
    """
    run = RunFolder.open(path)
    if is_task_run(path):
        raise UserError(
            f"{path} is a run of a downstream task, and this is for pre-training; remask report {quoted(path)} shows "
            f"its result, and after remask export {quoted(path)} remask embed and attention take it"
        )
    given = {**rules_of(run.format), **changed_settings(run), **(settings or {})}
    recipe = load_recipe(path / "recipe.toml", given, environment={}, strict=False)
    refuse_silent(recipe, settings or {})
    return run, _beside(recipe, path)


def open_task(path: Path, overrides: Mapping[str, Any] | None = None) -> tuple[RunFolder, Any]:
    """A downstream run's folder and recipe, with `overrides` of its keys.

    Raises UserError for other folders, runs of pre-training, and damaged recipes.
    """
    run = RunFolder.open(path)
    try:
        kind = read_toml(path / "recipe.toml").get("task")
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}/recipe.toml is damaged: {error}") from error
    if kind not in TASKS:
        raise UserError(
            f"{path} is a run of pre-training: train it further with remask finetune {quoted(path)} --data DIR"
        )
    pixel_range = run.read("task.json").get("range")
    defaults = {
        **rules_of(run.format, "data"),
        **({"data.range": pixel_range} if pixel_range else {}),
        **changed_settings(run),
        **(overrides or {}),
    }
    return run, load(TASKS[kind], FOLDER / kind, path / "recipe.toml", defaults, environment={})


def results_of(recipe: Recipe) -> list[str]:
    """What a finished run of pre-training has beside its checkpoints: files in its folder."""
    hides = bool(recipe.masking.ratio)  # else there is nothing to be shown
    figure = ["pictures/reconstruction.png"] if hides else []
    return ["export/backbone.safetensors", *figure, REPORT]


def _beside(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the absolute path of a codebook inside the run's folder, so that the folder can be moved."""
    file = recipe.method.target.file
    if file is None or not (folder / file).is_file():
        return recipe
    target = recipe.method.target.model_copy(update={"file": str(folder / file)})
    return recipe.model_copy(update={"method": recipe.method.model_copy(update={"target": target})})


__all__ = ["open_run", "open_task", "results_of"]
