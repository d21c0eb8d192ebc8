"""[model] of a downstream recipe → the backbone that is trained on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from remask.backbones.checkpointing import set_checkpointing
from remask.downstream.inputs import NO_NETWORK, stated_keys
from remask.errors import UserError, naming
from remask.evaluation.probing.features import evaluating
from remask.images.levels import Levels, rule_of
from remask.images.sources.files import printable
from remask.images.sources.labels import match
from remask.images.tools.measuring import measure
from remask.interop.start import start
from remask.recipe.downstream import DetectModel, FinetuneModel, ImagesSection, SegmentModel
from remask.recipe.sections import RuntimeSection
from remask.training.cost import forward_gflops
from remask.training.runtime import Runtime, auto_workers
from remask.types import Size


def network(section: FinetuneModel | SegmentModel | DetectModel, size: Size | None) -> tuple[Any, Size]:
    """The backbone, and the size of the images that it was asked for or, without one, built for."""
    if section.source is None:
        raise UserError(NO_NETWORK)
    with naming(stated_keys(section)):
        found = start(
            section.source, size, heads=section.heads, normalise=section.normalise, drop_path=section.drop_path,
            untrained=section.untrained,
        )  # fmt: skip
    if section.checkpointing:
        set_checkpointing(found[0])
    return found


def freeze(model: Any, section: FinetuneModel | SegmentModel | DetectModel) -> None:
    """Leave only the head to be trained, where that was asked for."""
    if section.frozen:
        model.backbone.requires_grad_(False)


def gflops(model: Any, forward: Callable[[Tensor], object], size: Size) -> float:
    """Forward GFLOP of a picture, as it is tested."""
    with evaluating([model]):
        return forward_gflops(lambda: forward(torch.zeros(1, model.backbone.channels, *size, dtype=torch.uint8)))


def workers(section: RuntimeSection, runtime: Runtime) -> int:
    """Loader processes."""
    return auto_workers(runtime) if section.workers == "auto" else section.workers


def check_all(learned: Sequence[str], names: Sequence[str], where: str) -> None:
    """Raise UserError for a class that a run has begun to learn and that its pictures do not have any more."""
    found = set(match(names, learned, (), where, "the run").values())
    if gone := [name for place, name in enumerate(learned) if place not in found]:
        few = ", ".join(map(repr, gone[:3])) + (", …" if len(gone) > 3 else "")
        raise UserError(
            f"{printable(where)} has no class {few} any more, which the run has begun to learn: bring back its name, "
            "or start a new run"
        )


def fix_pixel_range(
    backbone: Any, source: Any, data: ImagesSection, run: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    """Say how the backbone's pictures are read; returns that for task.json, and a line for the start of a run.

    run   task.json of a run that is tested or goes on, which has it; None for a new one, whose source is looked at. A
          backbone that comes from a run of deep pictures keeps that run's range under "auto"
    Raises UserError for a source without contrast.
    """
    normalise = backbone.normalise
    if run is not None:
        normalise.read_by(Levels.of(run.get("range", data.range)), bool(run.get("deep")))
        return {}, []
    own = rule_of(normalise.levels)
    rule = data.range if data.range != "auto" or isinstance(own, str) else (own[0], own[1])
    found = measure(source, backbone.channels, rule)
    normalise.read_by(Levels.of(found.rule), found.deep)
    return {"range": found.rule, "deep": normalise.deep_set}, [
        f"pixels: {found.describe(backbone.channels, data.range)}"
    ]


def opened_of(data: ImagesSection, source: Any, val: Any, facts: Any) -> dict[str, tuple[Any, ...]]:
    """The sources that were opened, as `Task` has them: of a run that is only tested those that it is tested on.

    source, val   to learn from and to test on; without [data].val both were cut from one
    """
    if not data.val:
        return {"data": (source, val)}
    return {"val": (val,)} if facts else {"data": (source,), "val": (val,)}


__all__ = ["check_all", "fix_pixel_range", "freeze", "gflops", "network", "opened_of", "workers"]
