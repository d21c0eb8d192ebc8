"""`remask report`: the page of a run."""

from pathlib import Path

from remask.commands import downstream, pretraining
from remask.commands.paths import paths_or_texts


@paths_or_texts
def report(path: Path) -> Path:
    """Write RUN/report.html, of pre-training or of a downstream task, and return its path."""
    return downstream.report(path) if (path / "task.json").is_file() else pretraining.report(path)
