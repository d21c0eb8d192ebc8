"""`remask resume`: a run goes on where its last checkpoint stands."""

from pathlib import Path

from remask.commands import downstream, pretraining
from remask.commands.paths import paths_or_texts
from remask.training.data_record import Care
from remask.training.run_folder import is_task_run


@paths_or_texts
def resume(
    path: Path, *, device: str | None = None, quiet: bool = False, accept_changed_data: bool = False,
    verify_data: bool = False,
) -> Path:  # fmt: skip
    """Continue a run from its last checkpoint, of pre-training or of a downstream task; the device may be another.

    accept_changed_data   go on where names, sizes or labels are not those that the run was trained on
    verify_data           compare contents too, where the run has their hashes
    Raises UserError, before anything is written, where the data changed and that is not accepted.
    """
    again = downstream.resume if is_task_run(path) else pretraining.resume
    return again(path, device=device, quiet=quiet, care=Care(accept_changed_data, verify_data))
