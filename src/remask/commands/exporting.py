"""`remask export`: a run for other programs."""

from pathlib import Path

from remask.commands import downstream, pretraining
from remask.commands.paths import paths_or_texts
from remask.errors import UserError
from remask.training.run_folder import is_task_run


@paths_or_texts
def export(
    path: Path, out: Path | None = None, *, image_size: tuple[int, int] | None = None, checkpoint: str = "last"
) -> Path:
    """Write a run for other programs: the backbone of pre-training, or the whole model of a downstream task."""
    if not is_task_run(path):
        return pretraining.export(path, out, image_size=image_size, checkpoint=checkpoint)
    if image_size:
        raise UserError(f"{path} is fine-tuned for pictures of one size: leave out --image-size")
    return downstream.export(path, out, checkpoint=checkpoint)
