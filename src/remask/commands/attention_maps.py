"""`remask attention`: where a block of a vision transformer looks, head by head."""

from collections.abc import Sequence
from pathlib import Path

from remask.commands.image_choice import evenly_spread
from remask.commands.paths import paths_or_texts
from remask.commands.subjects import MODEL_DEFAULTS, ModelOptions, open_subject
from remask.commands.unusable_images import UnusableImages
from remask.errors import UserError
from remask.evaluation.figures.attention import attention_maps, attention_sheet
from remask.files.replacing import write_bytes
from remask.images.sources.opening import open_source
from remask.images.sources.subset import Subset
from remask.training.progress import Watch


@paths_or_texts
def attention(
    path: Path | str, images: str = "photos", model: ModelOptions = MODEL_DEFAULTS, *, out: Path | None = None,
    block: int = -1, count: int = 4, exclude: Sequence[str] = (), quiet: bool = False,
) -> Path:  # fmt: skip
    """Draw where a block looks, head by head, over some images.

    Returns the PNG: `out`, or RUN/pictures/attention.png.
    """
    subject = open_subject(str(path), model, quiet)
    target = out or (subject.folder / "pictures" / "attention.png" if subject.folder else None)
    if target is None:
        raise UserError(f"{path} is no run, in whose folder the picture would go: give --out PNG")
    source = open_source(images, exclude=exclude)
    some = Subset(source, evenly_spread(len(source), count))
    bad = UnusableImages(Watch("attention", quiet).say)
    batch = next(subject.batches(some, count, report=bad))  # raises where none can be used
    maps = attention_maps(subject.backbone, batch.images, block)
    normalise = subject.backbone.normalise
    shown = normalise.shown(batch.images.to(normalise.shift.device)).cpu()
    where = f"block {block} of {subject.name}" if block >= 0 else f"the last block of {subject.name}"
    write_bytes(target, attention_sheet(shown, maps, [f"Attention of {where}."]))
    return target


__all__ = ["attention"]
