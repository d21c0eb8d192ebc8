"""[model] of a downstream recipe → the pre-trained backbone, and its pixel range."""

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
from remask.recipe.runtime import RuntimeSection
from remask.training.cost import forward_gflops
from remask.training.runtime import Runtime, auto_workers
from remask.types import Size


def network(section: FinetuneModel | SegmentModel | DetectModel, size: Size | None) -> tuple[Any, Size]:
    """The backbone, and its image size in pixels (h, w): `size`, or the one of its pre-training if None.

    Raises UserError for weights that are unavailable or do not fit.
    """
    if section.source is None:
        raise UserError(NO_NETWORK)
    with naming(stated_keys(section)):
        opened = start(
            section.source, size, heads=section.heads, normalise=section.normalise, drop_path=section.drop_path,
            untrained=section.untrained,
        )  # fmt: skip
    if section.checkpointing:
        set_checkpointing(opened[0])
    return opened


def freeze(model: Any, section: FinetuneModel | SegmentModel | DetectModel) -> None:
    """Freeze the backbone, so that only the head is trained, if model.frozen is set."""
    if section.frozen:
        model.backbone.requires_grad_(False)


def gflops(model: Any, forward: Callable[[Tensor], object], size: Size) -> float:
    """Forward GFLOP of one image of `size` (h, w), in evaluation mode."""
    with evaluating([model]):
        return forward_gflops(lambda: forward(torch.zeros(1, model.backbone.channels, *size, dtype=torch.uint8)))


def workers(section: RuntimeSection, runtime: Runtime) -> int:
    """Number of loader processes."""
    return auto_workers(runtime) if section.workers == "auto" else section.workers


def check_all(learned: Sequence[str], names: Sequence[str], where: str) -> None:
    """Raise UserError for a class that a run has learned but the names of a source no longer contain.

    learned   class names of the run     names   class names of the source     where   the source, for the error
    """
    present = set(match(names, learned, (), where, "the run").values())
    if missing := [name for number, name in enumerate(learned) if number not in present]:
        some = ", ".join(map(repr, missing[:3])) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"{printable(where)} has no class {some} any more, which the run has begun to learn: bring back its name, "
            "or start a new run"
        )


def fix_pixel_range(
    backbone: Any, source: Any, data: ImagesSection, run: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    """Set the range of pixel values that the backbone reads; returns ({"range", "deep"} for task.json, log lines).

    run   task.json of a run that is tested or resumed, which holds the range; None for a new run, whose source is
          measured. With data.range "auto", a backbone pre-trained on deep images keeps the range of its run
    Raises UserError for a source without contrast.
    """
    normalise = backbone.normalise
    if run is not None:
        normalise.read_by(Levels.of(run.get("range", data.range)), bool(run.get("deep")))
        return {}, []
    own = rule_of(normalise.levels)
    rule = data.range if data.range != "auto" or isinstance(own, str) else (own[0], own[1])
    sample = measure(source, backbone.channels, rule)
    normalise.read_by(Levels.of(sample.rule), sample.deep)
    return {"range": sample.rule, "deep": normalise.deep_set}, [
        f"pixels: {sample.describe(backbone.channels, data.range)}"
    ]


def opened_of(data: ImagesSection, source: Any, val: Any, facts: Any) -> dict[str, tuple[Any, ...]]:
    """The opened sources by role, for `Task.sources`; only test images for a run that is only tested (with `facts`).

    source, val   training and test images; without [data].val both were split from one source
    """
    if not data.val:
        return {"data": (source, val)}
    return {"val": (val,)} if facts else {"data": (source,), "val": (val,)}


__all__ = ["check_all", "fix_pixel_range", "freeze", "gflops", "network", "opened_of", "workers"]
