"""`remask reconstruct`: what a method sees of some images, and what it predicts."""

import sys
from collections.abc import Sequence
from pathlib import Path

from remask.commands.image_choice import evenly_spread
from remask.commands.paths import paths_or_texts
from remask.commands.unusable_images import UnusableImages, refuse_too_many
from remask.evaluation.figures.reconstruction import reconstruct as draw_images
from remask.files.replacing import write_bytes
from remask.images.sources.opening import open_source
from remask.images.sources.subset import Subset
from remask.runs.knn import batches
from remask.runs.opening import open_run
from remask.runs.reopen import trained
from remask.seeds import generator


@paths_or_texts
def reconstruct(
    path: Path,
    images: str | None = None,
    *,
    out: Path | None = None,
    count: int = 4,
    seed: int = 0,
    checkpoint: str = "last",
    exclude: Sequence[str] = (),
    quiet: bool = False,
) -> Path:
    """Draw originals, masked views, predictions and covered unions of some images into a PNG; returns its path."""
    run, recipe = open_run(path)
    method = trained(run, recipe, checkpoint).eval()
    data = recipe.data
    if images is None:
        source = open_source(data.source or "photos", limit=data.limit, exclude=[*data.exclude, *exclude])
    else:
        source = open_source(images, exclude=exclude)
    some = Subset(source, evenly_spread(len(source), count))
    bad = UnusableImages(lambda line: None if quiet else print(line, file=sys.stderr))
    batch = next(refuse_too_many(some, batches(recipe, some, count, report=bad)))  # raises where none can be used
    views = method.draw(batch.images, generator(seed, "pictures"))
    target = out or run.path / "pictures" / "reconstruction.png"
    write_bytes(target, draw_images(method, batch.images, views))
    return target


__all__ = ["reconstruct"]
