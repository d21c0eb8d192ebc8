"""What `remask plan` predicts for this machine, beside what `remask pretrain` then takes, one recipe after the other.

The prediction is a line through two rehearsals with small batches; the runs have the whole batch, in processes of their
own, and one thread. Memory is the peak of cost.json; time is the median of the steps in metrics.jsonl but the first, in
which memory is taken. A row is the factor by which the prediction is off, either way.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from remask.planning.anatomy import anatomy
from remask.planning.rehearsal import Forecast, forecast, images_for
from remask.recipe import Recipe, choose

CASES: Mapping[str, int] = {"mae-vit-micro-cifar": 512, "convmae-convit-micro-cifar": 192, "dmjd-vit-tiny": 48}
"""Recipe and batch: large enough that a batch, not the libraries, fills the memory."""

STEPS = 10
MEMORY, SPEED = 1.15, 1.25


def run(cases: Mapping[str, int] = CASES) -> Iterator[dict[str, object]]:
    """Two rows a recipe."""
    for name, batch in cases.items():
        recipe = choose(name, {"optim.batch_size": batch, "runtime.threads": 1, "runtime.device": "cpu"})
        with tempfile.TemporaryDirectory() as folder:
            pictures = images_for(recipe, batch * STEPS, Path(folder) / "pictures")
            recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": pictures})})
            yield from compared(f"{name}, batch {batch}", forecast(recipe, batch, anatomy(recipe).training), recipe)


def compared(name: str, expected: Forecast, recipe: Recipe) -> Iterator[dict[str, object]]:
    """A prediction's rows."""
    batch = recipe.optim.batch_size
    held, took = trained(recipe)
    memory, seconds = expected.memory_mb(batch), expected.seconds(batch) / batch
    what = f"plan of {name}: {memory:.0f} MB predicted, {held:.0f} measured"
    yield {"name": what, "ratio": off(memory, held), "bar": -MEMORY, "unit": "x"}
    what = f"plan of {name}: {1e3 * seconds:.2f} ms an image predicted, {1e3 * took:.2f} measured"
    yield {"name": what, "ratio": off(seconds, took), "bar": -SPEED, "unit": "x"}


def off(predicted: float, measured: float) -> float:
    """The larger over the smaller."""
    return max(predicted, measured) / min(predicted, measured)


def trained(recipe: Recipe) -> tuple[float, float]:
    """MB at the peak and seconds an image of `remask pretrain`."""
    with tempfile.TemporaryDirectory() as folder:
        run, source, batch = Path(folder) / "run", str(recipe.data.source), str(recipe.optim.batch_size)
        command = [sys.executable, "-m", "remask.cli.main", "pretrain", "--recipe", recipe.name, "--data", source]
        command += ["--out", str(run), "--quiet", "--max-steps", str(STEPS), "--batch-size", batch]
        command += ["--device", "cpu", "--set", "runtime.threads=1", "--set", "runtime.log_every=1"]
        subprocess.run(command, check=True, capture_output=True)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        took = statistics.median(1 / line["images_per_s"] for line in lines[1:])
        return json.loads((run / "cost.json").read_text())["peak_memory_mb"], took


def main() -> None:
    """Print the rows."""
    for row in run():
        print(f"{row['name']}: off by {row['ratio']:.3f} x (at most {-float(row['bar']):g})", flush=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
