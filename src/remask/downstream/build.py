"""Downstream recipe → task: pictures, network, head, test, and the pictures a person looks at; one module a task."""

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
    """The task of a recipe. `facts` are those of a run that is only tested: nothing is opened to train on.

    report   gets a line for each unusable picture, once
    begun    the facts of a run that goes on: classes keep the numbers that they have there, by their names
    Raises UserError for sources that do not fit together, and all that a network may find fault with.
    """
    with seeded(recipe.seed, "weights"):
        if isinstance(recipe, Finetune):
            return build_finetune(recipe, runtime, report, facts, begun)
        if isinstance(recipe, Segment):
            return build_segment(recipe, runtime, report, facts, begun)
        assert isinstance(recipe, Detect)
        return build_detect(recipe, runtime, report, facts, begun)


def build_model(recipe: Downstream, facts: Mapping[str, Any]) -> tuple[Any, Size]:
    """The model of a run alone, without any picture, and the size of its pictures; `facts` are those of task.json."""
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
