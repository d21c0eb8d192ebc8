"""runtime.accumulate = "auto": the fewest micro-batches that fit in memory, tried on a GPU, forecast on a CPU."""

import torch

from remask.images.loading.loader import Batch
from remask.images.loading.memory import available_mb
from remask.planning.anatomy import anatomy
from remask.planning.rehearsal import forecast
from remask.recipe import Recipe
from remask.training.oom import fewest_micro_batches
from remask.training.runtime import Runtime, peak_resident_mb
from remask.training.trainer import Trainer

SHARE = 0.9
"""Share of the free memory that training may use."""


def choose_micro_batches(recipe: Recipe, trainer: Trainer, runtime: Runtime) -> str:
    """Set trainer.micro_batches to the fewest that fit in memory; returns a line for the log."""
    data, batch = recipe.data, recipe.optim.batch_size
    if runtime.device.type == "cuda":
        images = torch.zeros(batch, data.channels, *data.image_size, dtype=torch.uint8)
        count, why = trainer.choose_micro_batches(Batch(images, None, torch.arange(batch))), "tried on the device"
    else:
        expected = forecast(recipe, batch, anatomy(recipe).training)
        room = (
            SHARE * available_mb() + peak_resident_mb()
        )  # the forecast includes a process's own memory, which this one has already
        count = trainer.micro_batches = fewest_micro_batches(
            lambda n: expected.memory_mb(batch, n) <= room, batch, recipe.across_batch
        )
        why = f"{expected.memory_mb(batch, count) / 1024:.1f} GiB expected, {room / 1024:.1f} GiB there"
    return f"accumulate: a batch of {batch} in {count} part{'s' * (count > 1)} ({why})"


__all__ = ["choose_micro_batches"]
