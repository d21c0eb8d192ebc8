"""The process of a dry run: reads a request (JSON) from stdin, trains a few steps, prints their measurements."""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from remask.build.pretraining import build_method
from remask.build.training import build_loader, build_trainer
from remask.errors import UserError
from remask.images.sources.opening import open_second
from remask.recipe import Recipe, dump
from remask.training.run_folder import RunFolder
from remask.training.runtime import resolve


class Stopwatch:
    """A console that records wall and CPU time at every update."""

    def __init__(self) -> None:
        self.times = [(time.perf_counter(), time.process_time())]

    def update(self, step: int, words: str) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    def say(self, line: str) -> None: ...

    def __enter__(self) -> "Stopwatch":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def median(self, clock: int) -> float:
        """Median seconds between steps, without the first; clock 0 is wall time, 1 CPU time."""
        seconds = [moment[clock] for moment in self.times[1:]]
        return statistics.median(after - before for before, after in itertools.pairwise(seconds))


def main() -> None:
    """Run the request on stdin; a UserError becomes one line on stderr and exit code 2."""
    try:
        print(json.dumps(dry_run_steps(json.load(sys.stdin))))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def dry_run_steps(request: dict[str, Any]) -> dict[str, float]:
    """{"seconds", "cpu_seconds", "peak_mb"} of a step, trained in a new run folder.

    request   {"recipe": recipe as JSON, "batch", "parts": micro-batches, "steps", "source": spec, "run": folder}
    """
    recipe = shortened(Recipe.model_validate(request["recipe"]), request)
    settings, run = recipe.runtime, RunFolder(Path(request["run"]))
    runtime = resolve(settings.device, recipe.optim.precision, settings.compile, settings.threads)
    method = build_method(recipe, start=False)
    source = open_second(request["source"], limit=recipe.data.limit, exclude=recipe.data.exclude)
    trainer = build_trainer(recipe, method, build_loader(recipe, source, runtime, method), runtime, run)
    RunFolder.create(run.path, dump(recipe), {})
    trainer.train(watch := Stopwatch())
    return {"seconds": watch.median(0), "cpu_seconds": watch.median(1), "peak_mb": runtime.peak_memory_mb()}


def shortened(recipe: Recipe, request: dict[str, Any]) -> Recipe:
    """The recipe with the request's source, batch and steps, without saving and probing; see `dry_run_steps`."""
    changes: dict[str, dict[str, Any]] = {
        "data": {"source": request["source"]},
        "optim": {"batch_size": request["batch"], "max_steps": request["steps"]},
        "runtime": {
            "accumulate": request["parts"],
            "log_every": 1,
            "save_every_minutes": 1e6,
            "keep_every_epochs": None,
        },
    }
    sections = {name: getattr(recipe, name).model_copy(update=update) for name, update in changes.items()}
    return recipe.model_copy(update={**sections, "probe": None, "progress": None})


__all__ = ["Stopwatch", "dry_run_steps", "main", "shortened"]
