"""`remask refine`: a second stage after masked image modeling, from a run that is there (MIM-Refiner, 2402.10093)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.commands.paths import paths_or_texts
from remask.commands.pretraining import pretrain
from remask.errors import UserError
from remask.images.sources.opening import open_source
from remask.runs.refining import refine_recipe


@paths_or_texts
def refine(
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    settings: Sequence[str] = (),
    out: Path | None = None,
    quiet: bool = False,
    verify_data: bool = False,
) -> Path:
    """Train the last blocks of a run's backbone further, by instance discrimination; returns the folder of a new run.

    overrides, settings   of the recipe's keys, as for `pretrain`; the rest follows from the run and its data
    Raises UserError for a folder without a whole checkpoint, before anything is written.
    """
    recipe = refine_recipe(path, overrides or {}, settings)
    if recipe.data.source is None:
        raise UserError(f"{path} does not say which images it was trained on: name them with --data SRC")
    source = open_source(str(recipe.data.source), limit=recipe.data.limit, exclude=recipe.data.exclude)
    recipe = refine_recipe(path, overrides or {}, settings, len(source))
    return pretrain(recipe, out=out, quiet=quiet, verify_data=verify_data)


__all__ = ["refine"]
