"""`remask export`: a run for other programs."""

from pathlib import Path

from remask.commands.paths import paths_or_texts
from remask.downstream.build import build_model
from remask.downstream.export import export_model
from remask.downstream.training import learned, restored
from remask.errors import UserError
from remask.interop.export import export_backbone
from remask.runs.opening import open_run, open_task
from remask.runs.reopen import trained
from remask.training.run_folder import is_task_run, refuse_bytes
from remask.types import Size


@paths_or_texts
def export(path: Path, out: Path | None = None, *, image_size: Size | None = None, checkpoint: str = "last") -> Path:
    """Write a run for other programs; returns the folder, RUN/export by default.

    Of pre-training the backbone is written, for images of `image_size` pixels, by default the run's own. Of a
    downstream task the whole model is: a classifier of timm's loads with timm alone, any other with remask. The average
    of its weights is taken where there is one.
    """
    if not is_task_run(path):
        return _export_backbone(path, out, image_size, checkpoint)
    if image_size:
        raise UserError(f"{path} is fine-tuned for pictures of one size: leave out --image-size")
    return _export_task(path, out, checkpoint)


def _export_backbone(path: Path, out: Path | None, image_size: Size | None, checkpoint: str) -> Path:
    run, recipe = open_run(path)
    size, folder = image_size or recipe.data.image_size, out or run.path / "export"
    refuse_bytes(folder)
    backbone = trained(run, recipe, checkpoint, size).backbone
    export_backbone(backbone, folder, size, recipe.data.mean, recipe.data.std)
    return folder


def _export_task(path: Path, out: Path | None, checkpoint: str) -> Path:
    run, recipe = open_task(path)
    facts, folder = run.read("task.json"), out or path / "export"
    refuse_bytes(folder)
    model, size = build_model(recipe, facts)
    export_model(learned(restored(model, recipe, run, checkpoint)), recipe, size, facts, folder)
    return folder


__all__ = ["export"]
