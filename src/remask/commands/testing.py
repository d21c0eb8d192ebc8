"""`remask finetune`, `segment` and `detect` with --eval-only: the model of a run is tested again."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remask.commands.choosing import on_device, resolve_task_paths
from remask.commands.paths import paths_or_texts
from remask.commands.printing import Say, printer
from remask.commands.task_runs import result_line, runtime_of
from remask.downstream.build import build_task
from remask.downstream.training import conclude, restored, tested_on_other
from remask.images.loading.loader import TooManyBad
from remask.report import write_task_report
from remask.runs.bad_images import BadImages
from remask.runs.opening import open_task


@paths_or_texts
def evaluate(
    path: Path, overrides: Mapping[str, Any] | None = None, *, checkpoint: str = "last", device: str | None = None,
    quiet: bool = False, say: Say | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The content of eval/TASK.json: the model of a downstream run, tested on other images where `overrides` name some.

    The run's own test images may have changed since it was trained: a line says so, and the result's protocol too.
    """
    run, recipe = open_task(path, overrides)
    recipe = resolve_task_paths(on_device(recipe, device))
    runtime = runtime_of(recipe)
    bad = BadImages(path, (lambda line: None) if quiet else print)
    task = build_task(recipe, runtime, report=bad, facts=run.read("task.json"))
    bad.keep(task.left_out)
    for line in task.notes if not quiet else ():
        print(line, file=sys.stderr)
    model = restored(task.model, recipe, run, checkpoint).to(runtime.device)
    named = any(key.startswith("data.") for key in overrides or {})
    changed = [] if named else tested_on_other(task, run, recipe)
    for line in [] if quiet else changed:
        print(line, file=sys.stderr)
    try:
        found = conclude(task, model, run, recipe, quiet, changed, checkpoint)
    except TooManyBad as error:
        bad.write(error.bad)
        raise
    write_task_report(path)
    printer(say, quiet)(result_line(task.headline, found, run.path))
    return found


__all__ = ["evaluate"]
