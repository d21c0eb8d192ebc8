"""Processes that torchrun starts anew, after one of them died, go on with the run that the first ones began."""

from collections.abc import Callable
from pathlib import Path

from remask.errors import UserError
from remask.training.launcher import may_restart, restarted
from remask.training.run_folder import RunFolder, refuse_existing


def require_out(out: Path | None) -> None:
    """Raise UserError where the run's folder is unnamed, and processes may have to find it again."""
    if out is None and may_restart():
        raise UserError("give --out: processes that torchrun starts anew have to find the run they go on with")


def is_begun(path: Path, stored: Callable[[], str]) -> bool:
    """Whether the folder holds this very run, begun before torchrun started its processes anew: then it is continued.

    stored   the text of the recipe as a run of it in the folder has it
    A machine that joins in anew counts no restarts, so what decides is that torchrun may restart at all. Raises
    UserError for anything else in the folder.
    """
    file, run = path / "recipe.toml", RunFolder(path)
    begun = may_restart() and file.is_file() and file.read_text(encoding="utf-8") == stored()
    if begun and (restarted() or run.read_or_empty("status.json").get("state") != "finished"):
        return True
    refuse_existing(path)
    return False


__all__ = ["is_begun", "require_out"]
