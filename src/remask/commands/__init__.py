"""The verbs, for scripts as for the command line: each takes plain values and leaves its result in the run folder."""

from pathlib import Path

from remask.commands import downstream, pretraining
from remask.commands.data import data_check, data_pack, parse_form
from remask.commands.downstream import detect, evaluate, finetune, segment
from remask.commands.looking import Mapped, attention, embed, tsne
from remask.commands.paths import paths_or_texts
from remask.commands.pretraining import pretrain, reconstruct
from remask.commands.probing import Asked, probe, probe_table
from remask.commands.subject import Look
from remask.data_record import Care
from remask.errors import UserError


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
    again = downstream.resume if (path / "task.json").is_file() else pretraining.resume
    return again(path, device=device, quiet=quiet, care=Care(accept_changed_data, verify_data))


@paths_or_texts
def report(path: Path) -> Path:
    """Write RUN/report.html, of pre-training or of a downstream task, and return its path."""
    return downstream.report(path) if (path / "task.json").is_file() else pretraining.report(path)


@paths_or_texts
def export(
    path: Path, out: Path | None = None, *, image_size: tuple[int, int] | None = None, checkpoint: str = "last"
) -> Path:
    """Write a run for other programs: the backbone of pre-training, or the whole model of a downstream task."""
    if not (path / "task.json").is_file():
        return pretraining.export(path, out, image_size=image_size, checkpoint=checkpoint)
    if image_size:
        raise UserError(f"{path} is fine-tuned for pictures of one size: leave out --image-size")
    return downstream.export(path, out, checkpoint=checkpoint)


__all__ = [
    "Asked", "Look", "Mapped", "attention", "data_check", "data_pack", "detect", "embed", "evaluate", "export",
    "finetune", "parse_form", "pretrain", "probe", "probe_table", "reconstruct", "report", "resume", "segment", "tsne",
]  # fmt: skip
