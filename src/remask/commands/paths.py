"""Local paths of a recipe made absolute, so that a run can be resumed from anywhere."""

from pathlib import Path
from typing import Any

from remask.interop.loaded import split_spec
from remask.recipe import Recipe


def anchored(recipe: Recipe) -> Recipe:
    """Local paths made absolute, so that a run can be resumed from anywhere."""
    updates: dict[str, Any] = {}
    for name in ("data", "probe"):
        section = getattr(recipe, name)
        if section:
            updates[name] = section.model_copy(update={"source": absolute(section.source)})
    for name in ("method", "jd"):
        if section := getattr(recipe, name):
            files = {key: absolute(getattr(section.target, key)) for key in ("file", "weights")}
            updates[name] = section.model_copy(update={"target": section.target.model_copy(update=files)})
    if recipe.distill:
        teachers = [
            t.model_copy(update={"source": anchored_spec(t.source), "weights": absolute(t.weights)})
            for t in recipe.distill.teachers
        ]
        cache = recipe.distill.cache  # which may not be there yet
        kept = str(Path(cache).expanduser().resolve()) if cache else None
        updates["distill"] = recipe.distill.model_copy(update={"teachers": teachers, "cache": kept})
    updates["backbone"] = recipe.backbone.model_copy(update={"weights": anchored_spec(recipe.backbone.weights)})
    return recipe.model_copy(update=updates)


def anchored_spec(spec: str | None) -> str | None:
    """The file of "mae:FILE" and the like by its whole path."""
    if spec is None:
        return None
    plain, _ = split_spec(spec)
    kind, colon, name = plain.partition(":")
    if not colon or kind in ("timm", "untrained"):
        return spec
    return f"{kind}:{absolute(name)}{spec.removeprefix(plain)}"


def absolute(path: str | None) -> str | None:
    """What is there, by its whole path; anything else as it is, a set's name for instance."""
    return str(Path(path).expanduser().resolve()) if path and Path(path).expanduser().exists() else path


__all__ = ["absolute", "anchored", "anchored_spec"]
