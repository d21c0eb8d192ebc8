"""A run of finetune, segment or detect: trained from the start or continued, and the line that says its result."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.commands.choosing import choose_task_recipe
from remask.commands.printing import Say, printer
from remask.downstream.build import build_task
from remask.downstream.training import check_processes, train
from remask.files.escaping import printable
from remask.files.locking import lock_run, unlocking
from remask.images.loading.loader import TooManyBad
from remask.recipe import dump
from remask.recipe.downstream import Downstream
from remask.report import write_task_report
from remask.runs.bad_images import BadImages
from remask.runs.opening import open_task
from remask.runs.restarting import is_begun, require_out
from remask.training.data_record import Care
from remask.training.distributed import World, joined
from remask.training.launcher import restart_patience
from remask.training.run_folder import RunFolder
from remask.training.runtime import Runtime, resolve


def start_task(
    task: str, start: str | None, recipe: str | None, overrides: Mapping[str, Any] | None, settings: Sequence[str],
    out: Path | None, quiet: bool, verify_data: bool, say: Say | None,
) -> Path:  # fmt: skip
    """The folder of a new run of the task, trained to its end; arguments as those of `finetune`."""
    chosen = choose_task_recipe(task, start, recipe, overrides, settings)
    require_out(out)
    with unlocking(), joined(chosen.runtime.device, chosen.runtime.patience) as world:
        path = world.first(lambda: out or Path("runs") / f"{task}-{chosen.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        begun = world.first(lambda: is_begun(path, lambda: dump(chosen)))
        run = open_task(path)[1] if begun else chosen
        _train_joined(run, path, quiet, not begun, Care(verify=verify_data), printer(say, quiet), None, world)
    return path


def train_task(
    recipe: Downstream, path: Path, quiet: bool, fresh: bool, care: Care, say: Say, checkpoint: str | None = None
) -> None:
    """Train to the end of the recipe, test, write the report, and say the result in a line.

    fresh        make the folder; else continue from a checkpoint
    checkpoint   exactly this one; None: the last, or the newest that is intact
    """
    with unlocking(), joined(recipe.runtime.device, recipe.runtime.patience) as world:
        _train_joined(recipe, path, quiet, fresh, care, say, checkpoint, world)


def _train_joined(
    recipe: Downstream, path: Path, quiet: bool, fresh: bool, care: Care, say: Say, checkpoint: str | None, world: World
) -> None:
    check_processes(recipe, world)
    if not fresh:
        world.first(lambda: lock_run(path, patience=restart_patience()))
    runtime, bad = runtime_of(recipe, world), BadImages(path, (lambda line: None) if quiet else print, world.main)
    begun = None if fresh else RunFolder.open(path).read("task.json")
    with world.in_turn():
        task = build_task(recipe, runtime, report=bad, begun=begun)
    try:
        result = train(task, recipe, runtime, path, fresh=fresh, quiet=quiet, care=care, checkpoint=checkpoint)
    except TooManyBad as error:
        bad.write(error.bad)
        raise
    finally:
        if path.is_dir():
            bad.keep(task.left_out)
    if world.main:
        write_task_report(path)
        RunFolder(path).finish()
        say(result_line(task.headline, result, path))


def result_line(headline: str, result: Mapping[str, Any], path: Path) -> str:
    """The main number of a result for a person, how many images it leaves out, and where the report is."""
    value, bad = result[headline], result.get("bad_images", 0)
    said = (
        f"{headline} n/a: there is nothing to find in the test pictures" if value is None else f"{headline} {value:.2f}"
    )
    if bad:
        said += f", without {bad} of {bad + result['images']} test pictures that cannot be used (bad_images.txt)"
    return f"{said}  →  {printable(path)}/report.html"


def runtime_of(recipe: Downstream, world: World | None = None) -> Runtime:
    """Device, precision and threads of the recipe. Raises UserError for a device that is not there."""
    settings = recipe.runtime
    return resolve(settings.device, recipe.optim.precision, settings.compile, settings.threads, world)


__all__ = ["result_line", "runtime_of", "start_task", "train_task"]
