"""`remask report`: the page of a run."""

from pathlib import Path

import torch

from remask.build.pretraining import build_method
from remask.commands.paths import paths_or_texts
from remask.method import equation
from remask.recipe import dump
from remask.report import write_report, write_task_report
from remask.runs.opening import open_run, open_task
from remask.training.run_folder import is_task_run


@paths_or_texts
def report(path: Path) -> Path:
    """Write RUN/report.html, of pre-training or of a downstream task, and return its path."""
    if is_task_run(path):
        run, _ = open_task(path)
        return write_task_report(run.path)
    _, recipe = open_run(path)
    with torch.device("meta"):
        text = equation(build_method(recipe), recipe.data.image_size)
    return write_report(path, dump(recipe), text)


__all__ = ["report"]
