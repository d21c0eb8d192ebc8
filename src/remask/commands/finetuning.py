"""`remask finetune`: a network and a linear head learn classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.commands.paths import paths_or_texts
from remask.commands.printing import Say
from remask.commands.task_runs import start_task


@paths_or_texts
def finetune(
    start: str | None, recipe: str | None = None, overrides: Mapping[str, Any] | None = None, *,
    settings: Sequence[str] = (), out: Path | None = None, quiet: bool = False, verify_data: bool = False,
    say: Say | None = None,
) -> Path:  # fmt: skip
    """Train a network and a linear head on classes; returns the run folder, with eval/finetune.json.

    start         RUN, or mae:FILE, timm:NAME, untrained:NAME and the like; None where the recipe says it
    recipe        a name of recipes/finetune, or a TOML file; overrides and settings go over it
    verify_data   hash the contents of all images, so that a resume can compare them
    say           receives the line with the result; by default it is printed unless quiet
    """
    return start_task("finetune", start, recipe, overrides, settings, out, quiet, verify_data, say)


__all__ = ["finetune"]
