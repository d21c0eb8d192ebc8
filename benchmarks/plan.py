"""What `remask plan` predicts for this machine, beside what `remask pretrain` then takes, one recipe after the other.

The prediction is a line through two rehearsals with small batches; the runs have the whole batch, in processes of their
own, and their numbers are those of cost.json: memory at the peak and processor seconds an image, on one thread. A run
of one step is taken off, since memory is taken once. A row is the factor by which the prediction is off, either way.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from remask.planning import Forecast, anatomy, forecast
from remask.planning.rehearsal import pictures_for
from remask.recipe import Recipe, choose

CASES: Mapping[str, int] = {"mae-vit-micro-cifar": 512, "convmae-convit-micro-cifar": 192, "dmjd-vit-tiny": 48}
"""Recipe and batch: large enough that a batch, not the libraries, fills the memory."""

STEPS = 6
MEMORY, SPEED = 1.15, 1.25


def run(cases: Mapping[str, int] = CASES) -> Iterator[dict[str, object]]:
    """Two rows a recipe."""
    for name, batch in cases.items():
        recipe = choose(name, {"optim.batch_size": batch, "runtime.threads": 1, "runtime.device": "cpu"})
        yield from compared(f"{name}, batch {batch}", forecast(recipe, batch, anatomy(recipe).training), recipe)


def compared(name: str, expected: Forecast, recipe: Recipe) -> Iterator[dict[str, object]]:
    """A prediction's rows."""
    batch = recipe.optim.batch_size
    first, cost = trained(recipe, 1), trained(recipe, STEPS)
    memory, seconds = expected.memory_mb(batch), expected.cpu_seconds(batch) / batch
    took = (cost["cpu_hours"] - first["cpu_hours"]) * 3600 / (cost["images"] - first["images"])
    what = f"plan of {name}: {memory:.0f} MB predicted, {cost['peak_memory_mb']:.0f} measured"
    yield {"name": what, "ratio": off(memory, cost["peak_memory_mb"]), "bar": -MEMORY, "unit": "x"}
    what = f"plan of {name}: {1e3 * seconds:.2f} ms an image predicted, {1e3 * took:.2f} measured"
    yield {"name": what, "ratio": off(seconds, took), "bar": -SPEED, "unit": "x"}


def off(predicted: float, measured: float) -> float:
    """The larger over the smaller."""
    return max(predicted, measured) / min(predicted, measured)


def trained(recipe: Recipe, steps: int) -> dict[str, Any]:
    """cost.json of `remask pretrain` over a few steps, on pictures as the rehearsals have them."""
    batch = recipe.optim.batch_size
    with tempfile.TemporaryDirectory() as folder:
        pictures = pictures_for(recipe, batch * STEPS, Path(folder) / "pictures")
        command = [sys.executable, "-m", "remask.cli", "pretrain", "--recipe", recipe.name, "--data", pictures]
        command += ["--out", f"{folder}/run", "--quiet", "--max-steps", str(steps), "--batch-size", str(batch)]
        command += ["--device", "cpu", "--set", "runtime.threads=1"]
        subprocess.run(command, check=True, capture_output=True)
        return json.loads((Path(folder) / "run" / "cost.json").read_text())


def main() -> None:
    """Print the rows."""
    for row in run():
        print(f"{row['name']}: off by {row['ratio']:.3f} x (at most {-float(row['bar']):g})", flush=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
