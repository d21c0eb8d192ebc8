"""Paths that commands are given: texts as well as paths, and those of a recipe made absolute."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from remask.images.sources.left_out import relative_pattern
from remask.recipe import Recipe
from remask.recipe.networks import split_spec

T = TypeVar("T")


def paths_or_texts(command: Callable[..., T]) -> Callable[..., T]:
    """The command for a script that has texts where it wants paths, and the other way round.

    What each argument wants is read from its annotation; `~` is the home folder.
    """
    wanted = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def taking(*given: Any, **named: Any) -> T:
        bound = wanted.bind(*given, **named)
        kinds = {name: wanted.parameters[name].annotation for name in bound.arguments}
        bound.arguments |= {name: _as_wanted(value, kinds[name]) for name, value in bound.arguments.items()}
        return command(*bound.args, **bound.kwargs)

    return taking


def _as_wanted(value: Any, annotation: Any) -> Any:
    kinds = (annotation, *get_args(annotation))
    if isinstance(value, Mapping):  # overrides by their dotted keys
        return {key: str(inner) if isinstance(inner, Path) else inner for key, inner in value.items()}
    if isinstance(value, Path) and str in kinds:
        return str(value)
    if isinstance(value, str) and Path in kinds and str not in kinds:
        return Path(value).expanduser()
    return value


def anchored(recipe: Recipe) -> Recipe:
    """Local paths made absolute, so that a run can be resumed from anywhere."""
    updates: dict[str, Any] = {}
    for name in ("data", "probe"):
        section = getattr(recipe, name)
        if section:
            updates[name] = section.model_copy(update={"source": absolute(section.source)})
    patterns = relative_to(recipe.data.source, recipe.data.exclude)
    updates["data"] = updates["data"].model_copy(update={"exclude": patterns})
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


def relative_to(source: str | None, patterns: Sequence[str]) -> list[str]:
    """Patterns as they are held against paths below a source, wherever the command is given again."""
    return [relative_pattern(pattern, source or "") for pattern in patterns]


__all__ = ["absolute", "anchored", "anchored_spec", "paths_or_texts", "relative_to"]
