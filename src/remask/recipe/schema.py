"""The schema of a pre-training recipe: its sections, and checks of combinations of keys."""

from typing import Any, get_args

from pydantic import Field, model_validator

from remask.recipe.distill import AverageSection, DistillSection
from remask.recipe.masking import MaskingSection
from remask.recipe.problems import problems
from remask.recipe.refine import RefineSection
from remask.recipe.runtime import PretrainingRuntime, ProbeSection
from remask.recipe.schedule import OptimSection, ProgressSection
from remask.recipe.sections import (
    DISTILLING,
    METHODS,
    About,
    BackboneSection,
    DataSection,
    DMSection,
    JDSection,
    MethodSection,
)
from remask.recipe.terms import UniformitySection
from remask.recipe.values import Section


class Recipe(About):
    """One run, complete: what is trained on what, how, and what the paper reports for it."""

    data: DataSection
    backbone: BackboneSection
    masking: MaskingSection
    method: MethodSection
    dm: DMSection | None = Field(default=None, description="Disjoint masking; off when absent.")
    jd: JDSection | None = Field(default=None, description="Joint distillation; off when absent.")
    uniformity: UniformitySection | None = Field(default=None, description="U-MAE's term; off when absent.")
    optim: OptimSection
    distill: DistillSection | None = Field(default=None, description="Teachers of dmae and moma; off when absent.")
    average: AverageSection = AverageSection()
    refine: RefineSection = RefineSection()
    progress: ProgressSection | None = Field(default=None, description="Growing image sizes; off when absent.")
    runtime: PretrainingRuntime = PretrainingRuntime()
    probe: ProbeSection | None = Field(default=None, description="kNN on the way; off when absent.")

    @property
    def ete_per_epoch(self) -> int:
        """ETE of an epoch: the views of a picture, or 4 for whole crops, which are as many tokens as 4 views at .75."""
        return 4 if self.masking.pattern == "none" else self.dm.views if self.dm else 1

    @property
    def across_batch(self) -> bool:
        """Whether some term compares the pictures of a batch with one another, so that no batch may be cut."""
        return self.uniformity is not None or self.method.name == "refiner"

    @model_validator(mode="before")
    @classmethod
    def _teachers(cls, value: Any) -> Any:
        """Check what belongs to a method, before the keys of [distill] and [masking] are validated."""
        method = value.get("method") if isinstance(value, dict) else None
        name = method.get("name") if isinstance(method, dict) else None
        masking = value.get("masking") if isinstance(value, dict) else None
        pattern = masking.get("pattern") if isinstance(masking, dict) else None
        if name == "refiner" and pattern not in (None, "none"):
            raise ValueError(
                f"masking.pattern {pattern}: method.name refiner compares whole crops, of which nothing is hidden: set "
                "masking.pattern none and masking.ratio 0"
            )
        if name in METHODS and name not in DISTILLING and isinstance(value.get("distill"), dict):
            keys = ", ".join(f"distill.{key}" for key in value["distill"]) or "distill"
            raise ValueError(
                f"{keys}: [distill] belongs to dmae and moma, and method.name {name} has no teachers: choose one "
                "of those"
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        for problem in problems(self):
            raise ValueError(problem)
        return self


def recipe_keys(section: type[Section] = Recipe, prefix: str = "") -> dict[str, str]:
    """{dotted key: line of help} of all keys, sections included, in the order of the schema."""
    keys: dict[str, str] = {}
    for name, field in section.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        nested = next((kind for kind in inner if issubclass(kind, Section)), None)
        keys[prefix + name] = field.description or (nested and nested.__doc__) or ""
        if nested:
            keys |= recipe_keys(nested, f"{prefix}{name}.")
    return keys


__all__ = ["METHODS", "Recipe", "recipe_keys"]
