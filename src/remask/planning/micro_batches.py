"""runtime.accumulate = "auto": the fewest parts of a batch that fit, tried on a GPU, forecast on a CPU."""

from pathlib import Path

import torch

from remask.images.loading.loader import Batch
from remask.planning.anatomy import anatomy
from remask.planning.rehearsal import forecast
from remask.recipe import Recipe
from remask.training.oom import fewest_micro_batches
from remask.training.runtime import Runtime, peak_resident_mb
from remask.training.trainer import Trainer

SHARE = 0.9
"""Of the memory that is free, what training may fill."""


def choose_micro_batches(recipe: Recipe, trainer: Trainer, runtime: Runtime) -> str:
    """Let the trainer cut its batches into as few parts as fit. Returns the line that says so; nothing else changes."""
    data, batch = recipe.data, recipe.optim.batch_size
    if runtime.device.type == "cuda":
        images = torch.zeros(batch, data.channels, *data.image_size, dtype=torch.uint8)
        count, why = trainer.choose_micro_batches(Batch(images, None, torch.arange(batch))), "tried on the device"
    else:
        expected = forecast(recipe, batch, anatomy(recipe).training)
        room = SHARE * available_mb() + peak_resident_mb()  # the forecast is of a whole process, and this is one
        count = trainer.micro_batches = fewest_micro_batches(lambda n: expected.memory_mb(batch, n) <= room, batch)
        why = f"{expected.memory_mb(batch, count) / 1024:.1f} GiB expected, {room / 1024:.1f} GiB there"
    return f"accumulate: a batch of {batch} in {count} part{'s' * (count > 1)} ({why})"


def available_mb() -> float:
    """Memory that this process may still take: what the kernel calls available, and a control group's limit."""
    found = [_meminfo(), *(_left(Path("/sys/fs/cgroup") / limit, Path("/sys/fs/cgroup") / used) for limit, used in (
        ("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ))]  # fmt: skip
    return min(found)


def _meminfo() -> float:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return float("inf")
    facts = dict(line.split(":") for line in path.read_text().splitlines())
    return int(facts["MemAvailable"].split()[0]) / 2**10


def _left(limit: Path, used: Path) -> float:
    if not (limit.is_file() and used.is_file()) or not (text := limit.read_text().strip()).isdigit():
        return float("inf")
    return (int(text) - int(used.read_text())) / 2**20


__all__ = ["available_mb", "choose_micro_batches"]
