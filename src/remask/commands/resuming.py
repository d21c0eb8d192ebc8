"""`remask resume`: a run is continued from its last checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from remask.commands.choosing import on_device
from remask.commands.paths import paths_or_texts
from remask.commands.pretraining import write_results
from remask.commands.printing import printer
from remask.commands.refusals import check_unfinished
from remask.commands.task_runs import train_task
from remask.files.locking import lock_run, unlocking
from remask.recipe.changes import changes
from remask.runs.opening import open_run, open_task
from remask.runs.session import train
from remask.training.data_record import Care
from remask.training.distributed import joined
from remask.training.launcher import restarted
from remask.training.run_folder import is_task_run, is_trained


@paths_or_texts
def resume(
    path: Path, *, checkpoint: str | None = None, device: str | None = None, settings: Sequence[str] = (),
    quiet: bool = False, accept_changed_data: bool = False, verify_data: bool = False,
) -> Path:  # fmt: skip
    """Continue a run from its last checkpoint, of pre-training or of a downstream task; returns its folder.

    A run that ended before its first checkpoint begins at step 0. One that is trained, and lacks results, gets those.

    checkpoint            exactly this one, such as "epoch-0002"; by default the last, or the newest that is intact
    device                another one than the run had; its own by default
    settings              texts "key=value" of keys that may change in a run (recipe/changes.py); the run keeps them
    accept_changed_data   continue where names, sizes or labels are not those that the run was trained on
    verify_data           compare contents too, where the run has their hashes
    Raises UserError, before anything is written, where the data changed and that is not accepted, where the checkpoint
    is damaged, and where another process writes the run.
    """
    care = Care(accept_changed_data, verify_data, changes(settings))
    check_unfinished(path, checkpoint, settings)
    if is_task_run(path):
        _, task = open_task(path, care.settings)
        say = printer(None, quiet)
        train_task(on_device(task, device), path, quiet, fresh=False, care=care, say=say, checkpoint=checkpoint)
        return path
    run, recipe = open_run(path, care.settings)
    if device:
        recipe = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"device": device})})
    with unlocking():
        with joined(recipe.runtime.device, recipe.runtime.patience) as world:
            again = world.any(restarted())[0]  # a machine that joined counts no restarts
            if checkpoint or again or not world.first(lambda: is_trained(run)):
                train(recipe, path, quiet, False, world, care, checkpoint, ended="trained")
            elif world.main:
                lock_run(path)
        return write_results(path, quiet, world)


__all__ = ["resume"]
