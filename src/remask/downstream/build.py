"""Downstream recipe → task: images, network, head, test and figures; one module per task."""

from collections.abc import Callable, Mapping
from typing import Any

from remask.downstream.detect.task import build_detect, detector_of
from remask.downstream.finetune.task import build_finetune, classifier_of, split
from remask.downstream.network import fix_pixel_range
from remask.downstream.segment.task import build_segment, segmenter_of
from remask.downstream.training import Task
from remask.recipe.downstream import Detect, Downstream, Finetune, Segment
from remask.seeds import seeded
from remask.training.runtime import Runtime
from remask.types import Size


def build_task(
    recipe: Downstream, runtime: Runtime, report: Callable[[str], None] | None = None, facts: Any = None,
    begun: Any = None,
) -> Task:  # fmt: skip
    """The task of a recipe.

    report   called once with a line for each unusable image
    facts    content of task.json of a run that is only tested: no training images are opened
    begun    content of task.json of a run that is resumed: classes keep their numbers by name
    Raises UserError for sources that do not fit together, and for settings that do not fit the network.
    """
    with seeded(recipe.seed, "weights"):
        if isinstance(recipe, Finetune):
            return build_finetune(recipe, runtime, report, facts, begun)
        if isinstance(recipe, Segment):
            return build_segment(recipe, runtime, report, facts, begun)
        assert isinstance(recipe, Detect)
        return build_detect(recipe, runtime, report, facts, begun)


def build_model(recipe: Downstream, facts: Mapping[str, Any]) -> tuple[Any, Size]:
    """The model of a run, built without images, and its image size in pixels (h, w); `facts` is the run's task.json."""
    model: Any
    with seeded(recipe.seed, "weights"):
        if isinstance(recipe, Finetune):
            model, size = classifier_of(recipe, facts["classes"])
        elif isinstance(recipe, Segment):
            model, size = segmenter_of(recipe, facts["classes"])
        else:
            assert isinstance(recipe, Detect)
            model, size = detector_of(recipe, facts["classes"], facts["masks"])
        fix_pixel_range(model.backbone, None, recipe.data, facts)
    return model, size


__all__ = ["build_model", "build_task", "split"]
