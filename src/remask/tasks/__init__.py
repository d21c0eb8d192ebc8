"""Downstream recipe → task: pictures, network, head, test, and the pictures a person looks at; one module a task."""

from collections.abc import Callable
from typing import Any

from remask.downstream import Task
from remask.recipe.downstream import Detect, Downstream, Finetune, Segment
from remask.runtime import Runtime, seeded
from remask.tasks.boxes import build_detect
from remask.tasks.classes import build_finetune, split
from remask.tasks.masks import build_segment


def build_task(
    recipe: Downstream, runtime: Runtime, report: Callable[[str], None] | None = None, facts: Any = None
) -> Task:
    """The task of a recipe. `facts` are those of a run that is only tested: nothing is opened to train on.

    report   gets a line for each unusable picture, once
    Raises UserError for sources that do not fit together, and all that a network may find fault with.
    """
    with seeded(recipe.seed, "weights"):
        if isinstance(recipe, Finetune):
            return build_finetune(recipe, runtime, report, facts)
        if isinstance(recipe, Segment):
            return build_segment(recipe, runtime, report, facts)
        assert isinstance(recipe, Detect)
        return build_detect(recipe, runtime, report, facts)


__all__ = ["build_task", "split"]
