"""`remask report`: the page of a run."""

from pathlib import Path

from remask.commands import downstream, pretraining
from remask.commands.paths import paths_or_texts
from remask.training.run_folder import is_task_run


@paths_or_texts
def report(path: Path) -> Path:
    """Write RUN/report.html, of pre-training or of a downstream task, and return its path."""
    return downstream.report(path) if is_task_run(path) else pretraining.report(path)
