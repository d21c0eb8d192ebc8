"""`remask detect`: a network and Mask R-CNN learn boxes and masks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.commands.paths import paths_or_texts
from remask.commands.printing import Say
from remask.commands.task_runs import start_task


@paths_or_texts
def detect(
    start: str | None, recipe: str | None = None, overrides: Mapping[str, Any] | None = None, *,
    settings: Sequence[str] = (), out: Path | None = None, quiet: bool = False, verify_data: bool = False,
    say: Say | None = None,
) -> Path:  # fmt: skip
    """Train a network and Mask R-CNN on boxes and masks in COCO's JSON; returns the run folder, with eval/detect.json.

    Arguments as those of `finetune`.
    """
    return start_task("detect", start, recipe, overrides, settings, out, quiet, verify_data, say)


__all__ = ["detect"]
