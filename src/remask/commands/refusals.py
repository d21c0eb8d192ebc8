"""Mistakes in a command's arguments that are known before anything is computed. Free of torch.

The command line calls these before it imports a command, so that a wrong path is answered at once; the commands and
who opens a path for them refuse in the same words.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remask.downstream.inputs import check_task_recipe
from remask.errors import UserError
from remask.evaluation.figures.feature_file import check_name
from remask.files.escaping import quoted
from remask.files.paths import check_file_out, home_expanded, write_error
from remask.files.text import LONGEST
from remask.images.sources.addresses import check_second, check_source
from remask.planning.devices import device as data_sheet
from remask.planning.devices import is_this_machine
from remask.recipe import Recipe
from remask.recipe.changes import changes, refuse_silent
from remask.recipe.networks import check_encoder
from remask.runs.checks import check_recipe
from remask.runs.opening import open_run, open_task, results_of
from remask.training.devices import check_device
from remask.training.launcher import may_restart, place, restarted
from remask.training.run_folder import (
    REPORT,
    RunFolder,
    check_checkpoint,
    check_new_run,
    find,
    is_task_run,
    is_trained,
    missing,
    why_no_run,
)


def check_pretrain(recipe: Recipe, out: Path | None) -> None:
    """Raise UserError for paths of a recipe, or an --out, with which it cannot be trained.

    Of several processes each may see other paths, on its own machine: they check once they have joined, so that the
    one that fails is heard.
    """
    if place().size > 1:
        return
    check_recipe(recipe)
    if not may_restart():  # else a run that is there may be continued
        check_new_run(out)


def check_task(recipe: Any, out: Path | None) -> None:
    """Raise UserError for paths of a downstream recipe, or an --out, with which it cannot be trained."""
    check_new_run(out)
    check_device(recipe.runtime.device)
    check_task_recipe(recipe)


def check_evaluate(path: Path, overrides: dict[str, Any], device: str | None) -> None:
    """Raise UserError where a downstream run, or the images that `overrides` name, cannot be tested."""
    _, recipe = open_task(path, overrides)
    check_device(device)
    check_task_recipe(recipe, tested=True)


def check_unfinished(path: Path, checkpoint: str | None = None, settings: Sequence[str] = ()) -> None:
    """Raise UserError for a folder that is no run, and for a run that has nothing to continue.

    checkpoint   that the run is to be continued from, which a finished one can be too
    settings     keys that are to change from there on, "key=value"
    """
    changed = changes(settings)
    if is_task_run(path):
        run, task = open_task(path, changed)
        refuse_silent(task, changed)
        results, again = [f"eval/{task.task}.json", REPORT], f"test it again with remask {task.task} {path} --eval-only"
    else:
        run, recipe = open_run(path, changed)
        results, again = results_of(recipe), f"probe it with remask probe {quoted(path)} --data SRC"
    if checkpoint is not None:
        find(run, checkpoint)
    elif settings and is_trained(run) and not restarted():
        raise UserError(
            f"{path} is trained to its end, where --set changes nothing: leave it out, or give --checkpoint"
        )
    elif _is_finished(run) and not restarted() and not missing(run, results):
        raise UserError(f"{path} is finished: {again}, or start a new run")


def check_run(path: Path, checkpoint: str | None = None) -> None:
    """Raise UserError for a folder that is no run, and for a checkpoint that it does not hold."""
    run, _ = open_task(path) if is_task_run(path) else open_run(path)
    if checkpoint is not None:
        check_checkpoint(run, checkpoint)


def check_reconstruct(path: Path, checkpoint: str, images: str | None, exclude: Sequence[str]) -> None:
    """Raise UserError for a folder that is no run of pre-training, its checkpoint, or images that do not exist."""
    run, recipe = open_run(path)
    if not recipe.masking.ratio:
        raise UserError(f"{path} hides nothing that could be predicted: it compares whole crops; see remask tsne")
    check_checkpoint(run, checkpoint)
    if images is not None:
        check_source(images, exclude=exclude)
    elif recipe.data.source is not None:
        check_source(recipe.data.source, recipe.data.limit, [*recipe.data.exclude, *exclude])


def check_subject(spec: str, checkpoint: str | None = None) -> None:
    """Raise UserError for what is neither a run nor a network: a folder without export, a file that does not exist."""
    path = Path(home_expanded(spec))
    if (path / "recipe.toml").is_file() and not is_task_run(path):
        if checkpoint is not None:
            check_checkpoint(RunFolder.open(path), checkpoint)
    elif path.is_dir():
        _refuse_without_export(path)
    elif ":" not in spec:
        raise UserError(f"{spec} is no run: give a folder that --out named, or mae:FILE, timm:NAME, untrained:NAME")
    else:
        check_encoder(spec)


def check_protocol(protocol: str, layers: object) -> None:
    """Raise UserError for a probe that does not exist, or layers that it does not take."""
    if protocol not in ("fast", "mae", "attentive"):
        raise UserError(f"there is no probe {protocol!r}: choose fast, mae or attentive")
    if layers and protocol != "fast":
        raise UserError(f"--layers is for the fast probe; with --protocol {protocol} give one --layer")


def check_tsne(out: Path, names: Sequence[str], networks: int) -> None:
    """Raise UserError for a number of titles that is not the networks', or a file that is no .png."""
    if names and len(names) != networks:
        raise UserError(f"{len(names)} names for {networks} networks: give one for each")
    if out.suffix != ".png":
        raise UserError(f"{out}: the picture is a .png; choose a file name that ends so")
    if len(os.fsencode(f"{out.stem}.json")) > LONGEST:
        raise UserError(f"{out}: no room for the name of the .json beside it; choose a shorter one")


def check_plan(name: str, *, measure: bool, mfu: bool) -> None:
    """Raise UserError for a device that has no data sheet, or a flag that is for the other kind of devices."""
    here = is_this_machine(name)
    if measure and not here:
        raise UserError(f"--measure trains on this machine, and --device {name} is another: leave one of them out")
    if mfu and here:
        raise UserError("--mfu is for a --device that is named; this machine's speed is measured")
    if not here:
        data_sheet(name)


def refuse_file(out: Path) -> None:
    """Raise UserError for a new file that exists already."""
    if out.exists():
        raise UserError(f"{out} exists already; choose another --out")


def check_folder_out(out: Path | None) -> None:
    """Raise the OSError that writing into the folder is certain to meet; nothing is wrong with None."""
    if out is not None and (error := write_error(out)):
        raise error


def _is_finished(run: RunFolder) -> bool:
    return run.read_or_empty("status.json").get("state") == "finished"


def _refuse_without_export(path: Path) -> None:
    """Raise UserError for a folder that holds no export to be read, and say what the folder is instead."""
    if any((folder / "backbone.safetensors").is_file() for folder in (path, path / "export")):
        return
    if is_task_run(path):
        raise UserError(
            f"{path} is fine-tuned and is read from its export: write that first with remask export {quoted(path)}"
        )
    if not (path / "recipe.toml").is_file():
        raise UserError(f"{path} is no run: {why_no_run(path)}; pictures go to --data")


__all__ = [
    "check_device", "check_evaluate", "check_file_out", "check_folder_out", "check_name", "check_plan",
    "check_pretrain", "check_protocol", "check_reconstruct", "check_run", "check_second", "check_source",
    "check_subject", "check_task", "check_tsne", "check_unfinished", "refuse_file",
]  # fmt: skip
