"""`remask resume`: a run is continued from its last checkpoint."""

from pathlib import Path

from remask.commands.choosing import on_device
from remask.commands.paths import paths_or_texts
from remask.commands.pretraining import write_results
from remask.commands.printing import printer
from remask.commands.refusals import check_unfinished
from remask.commands.task_runs import train_task
from remask.runs.opening import open_run, open_task
from remask.runs.session import train
from remask.training.data_record import Care
from remask.training.distributed import joined
from remask.training.run_folder import is_task_run


@paths_or_texts
def resume(
    path: Path, *, device: str | None = None, quiet: bool = False, accept_changed_data: bool = False,
    verify_data: bool = False,
) -> Path:  # fmt: skip
    """Continue a run from its last checkpoint, of pre-training or of a downstream task; returns its folder.

    device                another one than the run had; its own by default
    accept_changed_data   continue where names, sizes or labels are not those that the run was trained on
    verify_data           compare contents too, where the run has their hashes
    Raises UserError, before anything is written, where the data changed and that is not accepted.
    """
    care = Care(accept_changed_data, verify_data)
    check_unfinished(path)
    if is_task_run(path):
        _, task = open_task(path)
        train_task(on_device(task, device), path, quiet, fresh=False, care=care, say=printer(None, quiet))
        return path
    _, recipe = open_run(path)
    if device:
        recipe = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"device": device})})
    with joined(recipe.runtime.device, recipe.runtime.patience) as world:
        train(recipe, path, quiet, False, world, care)
    return write_results(path, quiet, world)


__all__ = ["resume"]
