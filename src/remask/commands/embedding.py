"""`remask embed`: a feature vector for every image, in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remask.commands.paths import paths_or_texts
from remask.commands.printing import Say, printer
from remask.commands.subjects import MODEL_DEFAULTS, ModelOptions, open_subject
from remask.commands.unusable_images import UnusableImages
from remask.evaluation.figures.embedding import embed as write_features
from remask.evaluation.figures.feature_file import check_file
from remask.evaluation.sharing import reading_together
from remask.files.escaping import printable
from remask.images.sources.left_out import notes
from remask.images.sources.opening import open_source
from remask.training.distributed import joined
from remask.training.progress import Watch


@paths_or_texts
def embed(
    path: Path | str, data: str, out: Path, model: ModelOptions = MODEL_DEFAULTS, *,
    layer: int = -1, pool: Any = "mean", limit: int | None = None, exclude: Sequence[str] = (), quiet: bool = False,
    say: Say | None = None,
) -> Path:  # fmt: skip
    """Write a feature vector for every image, with its number, path and label; returns `out`, a .parquet or .npz.

    Processes that torchrun starts read the images together, each its share; the first writes.
    """
    check_file(out)
    with joined(model.device) as world, reading_together():
        quiet = quiet or not world.main
        source, subject = open_source(data, limit=limit, exclude=exclude), open_subject(str(path), model, quiet)
        about = {"model": subject.name, "checkpoint": model.checkpoint, "image_size": list(subject.size)}
        watch = Watch("embed", quiet)
        bad = UnusableImages(watch.say if world.main else (lambda line: None))
        for line in notes(source) if world.main else ():
            watch.say(line)
        batches = subject.watched(watch, source, "embed", bad)
        rows = write_features(
            subject.backbone, batches, source, out, layer=layer, pool=pool, about=about, writes=world.main
        )
    without = f", without {len(bad.lines)} of {len(source)} pictures, which cannot be used" if bad.lines else ""
    if world.main:
        printer(say, quiet)(f"{rows} × {subject.backbone.width} features → {printable(out)}{without}")
    return out


__all__ = ["embed"]
