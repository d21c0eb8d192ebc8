"""`remask segment`: a network and UperNet, or a linear head, learn masks of classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.commands.paths import paths_or_texts
from remask.commands.printing import Say
from remask.commands.task_runs import start_task


@paths_or_texts
def segment(
    start: str | None, recipe: str | None = None, overrides: Mapping[str, Any] | None = None, *,
    settings: Sequence[str] = (), out: Path | None = None, quiet: bool = False, verify_data: bool = False,
    say: Say | None = None,
) -> Path:  # fmt: skip
    """Train a network and a segmentation head on masks of classes; returns the run folder, with eval/segment.json.

    Arguments as those of `finetune`; the head is UperNet or a linear one.
    """
    return start_task("segment", start, recipe, overrides, settings, out, quiet, verify_data, say)


__all__ = ["segment"]
