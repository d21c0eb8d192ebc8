"""Paths that commands are given: texts as well as paths, and those of a recipe made absolute. Free of torch."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from remask.files.paths import home_expanded
from remask.images.sources.addresses import entry_of
from remask.images.sources.left_out import relative_pattern
from remask.recipe import Recipe
from remask.recipe.networks import split_spec

T = TypeVar("T")

FORMER_NAMES = {"asked": "options", "look": "model"}
"""Arguments of commands by their names in earlier versions, which scripts may still use."""


def paths_or_texts(command: Callable[..., T]) -> Callable[..., T]:
    """The command, which then takes texts where it is annotated with paths, and paths where it is with texts.

    `~` is the home folder. Arguments may bear their names of earlier versions.
    """
    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def called(*given: Any, **named: Any) -> T:
        named = {FORMER_NAMES.get(name, name): value for name, value in named.items()}
        bound = signature.bind(*given, **named)
        kinds = {name: signature.parameters[name].annotation for name in bound.arguments}
        bound.arguments |= {name: _converted(value, kinds[name]) for name, value in bound.arguments.items()}
        return command(*bound.args, **bound.kwargs)

    return called


def _converted(value: Any, annotation: Any) -> Any:
    """The value as the annotation has it: a path as a text, or a text as a path."""
    kinds = (annotation, *get_args(annotation))
    if isinstance(value, Mapping):  # overrides by their dotted keys
        return {key: str(inner) if isinstance(inner, Path) else inner for key, inner in value.items()}
    if isinstance(value, Path) and str in kinds:
        return str(value)
    if isinstance(value, str) and Path in kinds and str not in kinds:
        return Path(home_expanded(value))
    return value


def resolve_paths(recipe: Recipe) -> Recipe:
    """The recipe with its local paths made absolute, so that a run can be resumed from anywhere."""
    updates: dict[str, Any] = {}
    for name in ("data", "probe"):
        section = getattr(recipe, name)
        if section:
            updates[name] = section.model_copy(update={"source": absolute(section.source)})
    patterns = relative_patterns(recipe.data.source, recipe.data.exclude)
    updates["data"] = updates["data"].model_copy(update={"exclude": patterns})
    for name in ("method", "jd"):
        if section := getattr(recipe, name):
            files = {key: absolute(getattr(section.target, key)) for key in ("file", "weights")}
            updates[name] = section.model_copy(update={"target": section.target.model_copy(update=files)})
    if recipe.distill:
        teachers = [
            t.model_copy(update={"source": resolve_spec(t.source), "weights": absolute(t.weights)})
            for t in recipe.distill.teachers
        ]
        cache = recipe.distill.cache  # which may not be there yet
        kept = str(Path(home_expanded(cache)).resolve()) if cache else None
        updates["distill"] = recipe.distill.model_copy(update={"teachers": teachers, "cache": kept})
    updates["backbone"] = recipe.backbone.model_copy(update={"weights": resolve_spec(recipe.backbone.weights)})
    return recipe.model_copy(update=updates)


def resolve_spec(spec: str | None) -> str | None:
    """The specification with the path of "mae:FILE" and the like made absolute."""
    if spec is None:
        return None
    plain, _ = split_spec(spec)
    kind, colon, name = plain.partition(":")
    if not colon or kind in ("timm", "untrained"):
        return spec
    return f"{kind}:{absolute(name)}{spec.removeprefix(plain)}"


def absolute(path: str | None) -> str | None:
    """The whole path of what exists; any other text as it is, a set's name for instance."""
    if path and (entry := entry_of(path)):  # an array of a numpy file
        return f"{Path(entry[0]).resolve()}:{entry[1]}"
    return str(Path(home_expanded(path)).resolve()) if path and Path(home_expanded(path)).exists() else path


def relative_patterns(source: str | None, patterns: Sequence[str]) -> list[str]:
    """The patterns relative to a source, so that they mean the same wherever the command is given again."""
    return [relative_pattern(pattern, source or "") for pattern in patterns]


__all__ = ["absolute", "paths_or_texts", "relative_patterns", "resolve_paths", "resolve_spec"]
