"""Measures a recipe on this machine: a few real steps in a fresh process that imports what `remask pretrain` does.

Two small batches give a line for memory and one for time, extrapolated to the recipe's batch. The cache of decoded
images grows with the epoch, not with the batch: it is off during the steps, and added afterwards.
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
"""Steps of a dry run; the first one, which allocates memory and the optimizer's state, is not timed."""

WORK = 150.0
"""Maximum training GFLOP per step of the larger dry run: a few seconds on one core."""

PHOTOGRAPH = (375, 500)
"""Height and width of the substitute photographs in pixels: roughly ImageNet's median."""


class DryRun(NamedTuple):
    """Measurements of a dry run: median wall and CPU seconds of a step, peak memory of the process in MiB."""

    batch: int
    seconds: float
    cpu_seconds: float
    peak_mb: float


class Forecast(NamedTuple):
    """Linear extrapolation from two dry runs to larger batches.

    image_mb   MiB of one uint8 image of a batch     kept_mb   MiB of the cache of decoded images
    """

    small: DryRun
    large: DryRun
    image_mb: float
    kept_mb: float = 0.0

    @property
    def mb_per_image(self) -> float:
        return max(self.large.peak_mb - self.small.peak_mb, 0.0) / (self.large.batch - self.small.batch)

    def memory_mb(self, batch: int, micro_batches: int = 1) -> float:
        """Peak MiB of a process that trains with `batch` images in `micro_batches`."""
        share = -(-batch // micro_batches)
        beyond = self.large.peak_mb + (share - self.large.batch) * self.mb_per_image
        return beyond + (batch - share) * self.image_mb + self.kept_mb

    def seconds(self, batch: int, micro_batches: int = 1) -> float:
        """Wall seconds of a step of `batch` images in `micro_batches`."""
        return micro_batches * self._extrapolate(batch / micro_batches, self.small.seconds, self.large.seconds)

    def cpu_seconds(self, batch: int, micro_batches: int = 1) -> float:
        """CPU seconds of a step of `batch` images in `micro_batches`."""
        return micro_batches * self._extrapolate(batch / micro_batches, self.small.cpu_seconds, self.large.cpu_seconds)

    def _extrapolate(self, batch: float, small: float, large: float) -> float:
        """Seconds at `batch`; the slope is clipped to 0.5-1.1 of the larger run's time per image (noisy timings)."""
        each = large / self.large.batch
        slope = (large - small) / (self.large.batch - self.small.batch)
        return large + (batch - self.large.batch) * min(max(slope, each / 2), 1.1 * each)


def forecast(recipe: Recipe, batch: int, gflops: float) -> Forecast:
    """The forecast from dry runs of two batches below `batch`, the larger of at most `WORK`.

    gflops   training GFLOP of one image. Raises UserError if a dry run fails.
    """
    crops = recipe.data.crops  # of one image, which stay together
    large = max(2, min(batch // 2, round(WORK / max(gflops, 1e-9)), 256) // crops)
    small = max(1, large // 3)
    data = recipe.data
    pixels = data.channels * data.image_size[0] * data.image_size[1] / 2**20
    return Forecast(dry_run(recipe, small * crops), dry_run(recipe, large * crops), pixels, kept_mb(recipe))


def kept_mb(recipe: Recipe) -> float:
    """MiB of the cache of decoded images after an epoch on a CPU; 0 if data.keep caches none in memory."""
    data = recipe.data
    if not data.source or data.reduced or not _in_memory(recipe):
        return 0.0
    source = open_source(data.source, limit=data.limit, exclude=data.exclude)
    room = half_of_memory_mb() if data.keep == "ram" else KEPT_MB
    return ImageCache(source, channels=data.channels, cache_mb=room).kept_bytes / 2**20


def _in_memory(recipe: Recipe) -> bool:
    """Whether the cache of decoded images is in CPU memory; a cache on a device is filled before the first step."""
    gpu = recipe.runtime.device != "cpu" and torch.cuda.is_available()
    return not gpu and recipe.data.keep in ("auto", "ram")


def dry_run(recipe: Recipe, batch: int, micro_batches: int = 1, steps: int = STEPS) -> DryRun:
    """Train `steps` steps in a fresh process and measure them. Raises UserError, with its last line, if it fails."""
    if _in_memory(recipe):
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"keep": "never"})})
    with tempfile.TemporaryDirectory(prefix="remask-plan-") as folder:
        source = images_for(recipe, batch * steps, Path(folder) / "pictures")
        request = {"recipe": recipe.model_dump(mode="json"), "batch": batch, "parts": micro_batches, "steps": steps}
        request |= {"source": source, "run": str(Path(folder) / "run")}
        # import all modules of a real run, for their memory counts
        code = "import remask.cli.main, remask.commands.pretraining; from remask.planning.steps import main; main()"
        command = [sys.executable, "-c", code]
        process = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if process.returncode:
        why = (process.stderr.strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
        raise UserError(f"a rehearsal with a batch of {batch} failed: {why}")
    return DryRun(batch, **json.loads(process.stdout.splitlines()[-1]))


def images_for(recipe: Recipe, count: int, folder: Path) -> str:
    """Spec of a source of at least `count` images: the recipe's if large enough, else JPEG photographs in `folder`.

    Photographs are of `PHOTOGRAPH` size, or of data.image_size if that is below 128: a step includes decoding.
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
