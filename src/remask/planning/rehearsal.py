"""A recipe rehearsed on this machine: a few real steps in a fresh process, which holds what `remask pretrain` does.

Two small batches give a line, of memory and of time, that is then read at the recipe's batch. Pictures that stay in
memory once they are decoded come with the epoch, not with the batch: they are left out of the line, and added.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from remask.errors import UserError
from remask.images.decoding import decode
from remask.images.loading.image_cache import KEPT_MB, ImageCache
from remask.images.loading.memory import half_of_memory_mb
from remask.images.sources.opening import open_source
from remask.recipe import Recipe

STEPS = 5
"""Of a rehearsal; the first, in which memory is taken and the optimizer makes its state, is not timed."""

WORK = 150.0
"""Training GFLOP that the larger rehearsed batch may have a step: seconds on one core."""

PHOTOGRAPH = (375, 500)
"""Height and width of the pictures that stand in for photographs: ImageNet's median, roughly."""


class DryRun(NamedTuple):
    """What steps of a batch took: wall and processor seconds of one (medians), MB at the peak of the process."""

    batch: int
    seconds: float
    cpu_seconds: float
    peak_mb: float


class Forecast(NamedTuple):
    """The line through two rehearsals, and what a larger batch is then expected to take.

    image_mb   of an image of a batch     kept_mb   of all pictures that stay decoded in memory
    """

    small: DryRun
    large: DryRun
    image_mb: float
    kept_mb: float = 0.0

    @property
    def mb_per_image(self) -> float:
        return max(self.large.peak_mb - self.small.peak_mb, 0.0) / (self.large.batch - self.small.batch)

    def memory_mb(self, batch: int, micro_batches: int = 1) -> float:
        """Peak of a process that trains with `batch` images in `micro_batches` slices."""
        share = -(-batch // micro_batches)
        beyond = self.large.peak_mb + (share - self.large.batch) * self.mb_per_image
        return beyond + (batch - share) * self.image_mb + self.kept_mb

    def seconds(self, batch: int, micro_batches: int = 1) -> float:
        """Wall time of such a step."""
        return micro_batches * self._read(batch / micro_batches, self.small.seconds, self.large.seconds)

    def cpu_seconds(self, batch: int, micro_batches: int = 1) -> float:
        """Its processor time."""
        return micro_batches * self._read(batch / micro_batches, self.small.cpu_seconds, self.large.cpu_seconds)

    def _read(self, batch: float, small: float, large: float) -> float:
        """The line, never below half nor above 1.1 of the larger batch's time an image: timings are noisy."""
        each = large / self.large.batch
        slope = (large - small) / (self.large.batch - self.small.batch)
        return large + (batch - self.large.batch) * min(max(slope, each / 2), 1.1 * each)


def forecast(recipe: Recipe, batch: int, gflops: float) -> Forecast:
    """Rehearse two batches below `batch`, the larger of at most WORK; `gflops` are those of training an image."""
    large = max(2, min(batch // 2, round(WORK / max(gflops, 1e-9)), 256))
    small = max(1, large // 3)
    data = recipe.data
    pixels = data.channels * data.image_size[0] * data.image_size[1] / 2**20
    return Forecast(dry_run(recipe, small), dry_run(recipe, large), pixels, kept_mb(recipe))


def kept_mb(recipe: Recipe) -> float:
    """MiB of the source's decoded pictures, once training on a CPU has seen all, where data.keep keeps them."""
    data = recipe.data
    if not data.source or data.reduced or not _in_memory(recipe):
        return 0.0
    source = open_source(data.source, limit=data.limit, exclude=data.exclude)
    room = half_of_memory_mb() if data.keep == "ram" else KEPT_MB
    return ImageCache(source, channels=data.channels, cache_mb=room).kept_bytes / 2**20


def _in_memory(recipe: Recipe) -> bool:
    """Whether it is the processor's memory that pictures may be kept in; a device has them before the first step."""
    gpu = recipe.runtime.device != "cpu" and torch.cuda.is_available()
    return not gpu and recipe.data.keep in ("auto", "ram")


def dry_run(recipe: Recipe, batch: int, micro_batches: int = 1, steps: int = STEPS) -> DryRun:
    """Train `steps` steps in a fresh process. Raises UserError with what it says where it fails."""
    if _in_memory(recipe):
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"keep": "never"})})
    with tempfile.TemporaryDirectory(prefix="remask-plan-") as folder:
        source = images_for(recipe, batch * steps, Path(folder) / "pictures")
        request = {"recipe": recipe.model_dump(mode="json"), "batch": batch, "parts": micro_batches, "steps": steps}
        request |= {"source": source, "run": str(Path(folder) / "run")}
        # all that a real run holds in memory, and the command line did not import it here
        code = "import remask.cli.main, remask.commands.pretraining; from remask.planning.steps import main; main()"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise UserError(f"a rehearsal with a batch of {batch} failed: {why}")
    return DryRun(batch, **json.loads(done.stdout.splitlines()[-1]))


def images_for(recipe: Recipe, count: int, folder: Path) -> str:
    """The recipe's own source where it has enough pictures for an epoch of these steps; else photographs in a folder.

    Pictures for small images are of their size, others of PHOTOGRAPH: decoding is part of a step.
    """
    data = recipe.data
    if data.source and len(open_source(data.source, limit=data.limit, exclude=data.exclude)) >= count:
        return data.source
    from PIL import Image

    folder.mkdir()
    height, width = data.image_size if max(data.image_size) < 128 else PHOTOGRAPH
    photos = open_source("photos")
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        if number < len(photos):
            photo = decode(photos.read(number), channels=3).permute(1, 2, 0).numpy()
            Image.fromarray(photo).resize((width, height)).save(path, "JPEG", quality=90)
        else:
            path.hardlink_to(folder / f"{number % len(photos):05d}.jpg")
    return str(folder)


__all__ = ["DryRun", "Forecast", "dry_run", "forecast", "images_for"]
