"""`remask pretrain`: a recipe trained in a new run folder, and what the run leaves besides its checkpoints."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.build import codebook as codebooks
from remask.commands.exporting import export
from remask.commands.paths import paths_or_texts, resolve_paths
from remask.commands.reconstruction import reconstruct
from remask.commands.reporting import report
from remask.errors import UserError
from remask.files.escaping import printable, quoted
from remask.files.locking import unlocking
from remask.recipe import Recipe, choose, dump
from remask.runs.opening import open_run
from remask.runs.restarting import is_begun, require_out
from remask.runs.session import train
from remask.training.data_record import Care
from remask.training.distributed import ALONE, World, joined
from remask.training.run_folder import RunFolder


@paths_or_texts
def pretrain(
    recipe: str | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    method: str | None = None,
    settings: Sequence[str] = (),
    out: Path | None = None,
    smoke: bool = False,
    quiet: bool = False,
    verify_data: bool = False,
) -> Path:
    """Train a recipe in a new run folder and return it. Everything is checked before the folder is made.

    recipe     a name or file, or a whole recipe, which the next four do not change
    overrides  recipe keys by their dotted path     method    "mae+dmjd" and the like
    settings   texts "key=value", as from --set     smoke     shrink to seconds
    verify_data   hash the contents of all images, so that a resume can compare them
    """
    if isinstance(recipe, str):
        recipe = choose(recipe, overrides, method=method, settings=settings, smoke=smoke)
    chosen = resolve_paths(recipe)
    require_out(out)
    with unlocking():
        with joined(chosen.runtime.device, chosen.runtime.patience) as world:
            path = world.first(lambda: out or Path("runs") / f"{chosen.name}-{time.strftime('%Y%m%d-%H%M%S')}")
            begun = world.first(lambda: is_begun(path, lambda: dump(_as_stored(chosen, path))))
            run = open_run(path)[1] if begun else chosen
            train(run, path, quiet, not begun, world, Care(verify=verify_data), ended="trained")
        return write_results(path, quiet, world)


def _as_stored(recipe: Recipe, path: Path) -> Recipe:
    """The recipe as a run of it in the folder stores it: with the codebook and pixel rule found when the run began."""
    if recipe.method.target.unfitted:
        recipe = codebooks.with_file(recipe, codebooks.FILE)
    data, found = recipe.data, open_run(path)[1].data
    measured: dict[str, Any] = {"range": found.range} if data.range == "auto" else {}
    measured |= {"mean": found.mean, "std": found.std} if data.measured else {}
    return recipe.model_copy(update={"data": data.model_copy(update=measured)})


def write_results(path: Path, quiet: bool, world: World = ALONE) -> Path:
    """The folder of a run that is trained, after its main process has written export, figure and report into it.

    The run is finished then. Raises UserError if the figure cannot be drawn, for its pictures are gone: the report is
    written before.
    """
    if not world.main:
        return path
    exported, why = export(path), None
    if open_run(path)[1].masking.ratio:  # else nothing is hidden that could be shown
        try:
            reconstruct(path, quiet=True)  # the images that cannot be used were named in training
        except UserError as error:
            why = error
    page = report(path)
    if why:
        raise UserError(
            f"{path} is trained, and export and report are written, but its figure cannot be drawn: {why}; put the "
            f"pictures back, and remask resume {quoted(path)} draws it"
        ) from why
    RunFolder(path).finish()
    if not quiet:
        print(f"backbone  {printable(exported)} (load_example.py shows how to use it)\nreport    {printable(page)}")
        print(f"next      remask probe {quoted(path)} --data LABELLED --val LABELLED")
    return path


__all__ = ["pretrain", "write_results"]
