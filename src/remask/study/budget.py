"""How long a row trains for what it may cost. A row's speed is measured once and its file kept beside the results."""

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.files.records import atomic_write
from remask.images.sources.opening import open_source
from remask.study.cells import Cell, Size, recipe_of, train_arguments
from remask.study.plan import Budget
from remask.training.run_folder import RunFolder

TIMED_STEPS = (8, 40)
"""Steps of the two rehearsals whose difference is the time of a step: the first steps also take memory and compile."""

Command = Callable[[list[str], Path], None]
"""Runs `remask` with arguments, and a file for what it says. Raises UserError where it fails."""


def size_of(cell: Cell, runs: Mapping[str, Path], command: Command) -> Size:
    """The epochs and images of a cell. A row with a budget in core-minutes is rehearsed where no file says its speed.

    Raises UserError for a source that does not open and a budget below one image.
    """
    row = cell.row
    budget = row.budget or cell.study.budget
    if budget.epochs:
        return Size(budget.epochs)
    if row.verb != "pretrain":
        raise UserError(f"row {cell.name}: the budget of a task is in epochs: give it budget = {{ epochs = N }}")
    recipe = recipe_of(cell)
    if recipe.data.source is None:
        raise UserError(f"row {cell.name} has no images: give the study or the row data")
    count = len(open_source(recipe.data.source, limit=recipe.data.limit, exclude=recipe.data.exclude))
    return in_epochs(_images(budget, cell, runs, command, recipe.ete_per_epoch, count), count, cell.name)


def in_epochs(images: int, count: int, name: str) -> Size:
    """`images` as epochs of equally many of the `count` images there are: never more, and the fewest epochs."""
    if images < 1:
        raise UserError(f"row {name}: its budget is less than one image")
    epochs = math.ceil(images / count)
    limit = images // epochs
    return Size(epochs, None if limit == count else limit)


def _images(budget: Budget, cell: Cell, runs: Mapping[str, Path], command: Command, views: int, count: int) -> int:
    if budget.images:
        return budget.images
    if budget.ete:
        return round(budget.ete / views * count)
    assert budget.core_minutes is not None
    return int(60 * budget.core_minutes / core_seconds(cell, runs, command))


def core_seconds(cell: Cell, runs: Mapping[str, Path], command: Command) -> float:
    """Of an image of the row, on one thread: from its file, else by two short runs, whose difference goes into it."""
    file = cell.place.results(cell.study) / f"{cell.name}.speed.json"
    words = train_arguments(cell, Size(1000), runs)  # so many that the steps are there
    said = train_arguments(cell, Size(1000), {})[:-1]  # without the seed, and the folders of the rows it needs
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["train"] == said:
            return float(known["core_seconds_per_image"])
    measured = []
    with tempfile.TemporaryDirectory(prefix="remask-study-") as folder:
        for steps in TIMED_STEPS:
            run = Path(folder) / str(steps)
            flags = ["--max-steps", str(steps), "--set", "runtime.tensorboard=false", "--out", str(run)]
            command([*words, *flags], Path(folder) / "log")
            measured.append(RunFolder(run).read("cost.json"))
        machine = RunFolder(run).read("env.json")
    hours, images = (measured[1][key] - measured[0][key] for key in ("cpu_hours", "images"))
    if images <= 0 or hours <= 0:
        raise UserError(f"row {cell.name}: its steps could not be timed: give its budget in images or epochs")
    content: dict[str, Any] = {
        "row": cell.name,
        "train": said,
        "core_seconds_per_image": 3600 * hours / images,
        "machine": {key: machine.get(key) for key in ("cpu", "instructions")},
        "versions": machine.get("versions", {}),
    }
    with atomic_write(file) as tmp:
        tmp.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return float(content["core_seconds_per_image"])


__all__ = ["core_seconds", "in_epochs", "size_of"]
