"""[model] of a downstream recipe → the backbone that is trained on."""

from typing import Any

from remask.build import auto_workers
from remask.evaluation.classifier import set_checkpointing
from remask.interop.start import start
from remask.recipe.downstream import DetectModel, FinetuneModel, SegmentModel
from remask.recipe.sections import RuntimeSection
from remask.runtime import Runtime
from remask.types import Size, UserError


def network(part: FinetuneModel | SegmentModel | DetectModel, size: Size | None) -> tuple[Any, Size]:
    """The backbone, and the size of the images that it was asked for or, without one, built for."""
    if part.source is None:
        raise UserError("no network to start from: give a RUN, or mae:FILE, timm:NAME, untrained:NAME")
    found = start(part.source, size, heads=part.heads, drop_path=part.drop_path, untrained=part.untrained)
    if part.checkpointing:
        set_checkpointing(found[0])
    return found


def freeze(model: Any, part: FinetuneModel | SegmentModel | DetectModel) -> None:
    """Leave only the head to be trained, where that was asked for."""
    if part.frozen:
        model.backbone.requires_grad_(False)


def workers(part: RuntimeSection, runtime: Runtime) -> int:
    """Loader processes."""
    return auto_workers(runtime) if part.workers == "auto" else part.workers


__all__ = ["freeze", "network", "workers"]
