"""Checks that the sources, teachers and weights of a pre-training recipe exist. Free of torch."""

from remask.errors import UserError, naming
from remask.files.paths import check_readable
from remask.images.sources.addresses import check_second, check_source
from remask.recipe import Recipe, Target
from remask.recipe.networks import MAPS, check_encoder, check_teacher, split_spec


def check_recipe(recipe: Recipe) -> None:
    """Raise UserError, with the message of opening it, for a path or network of the recipe that does not exist."""
    require_source(recipe)
    check_source(recipe.data.source, recipe.data.limit, recipe.data.exclude)
    check_second(recipe.probe.source if recipe.probe else None, recipe.data.exclude)
    _check_target(recipe.method.target, "method.target")
    for teacher in recipe.distill.teachers if recipe.distill else ():
        gives_map = teacher.source.partition(":")[0] in MAPS
        with naming(teacher.stated()):
            if not gives_map:
                check_encoder(teacher.source)
            elif recipe.method.name != "dmae":  # building dmae refuses such teachers
                check_teacher(teacher.source, teacher.weights)
    if recipe.backbone.weights:
        with naming(["backbone.weights"]):
            check_encoder(split_spec(recipe.backbone.weights)[0])
    if recipe.jd:
        _check_target(recipe.jd.target, "jd.target")


def require_source(recipe: Recipe) -> None:
    """Raise UserError if the recipe names no source of images."""
    if recipe.data.source is None:
        raise UserError("no pictures to train on: give --data DIR, or a built-in set, --data photos or --data digits")


def _check_target(target: Target, section: str) -> None:
    with naming(target.opened(section)):
        if target.file:
            check_readable(target.file)
        elif target.teacher:
            check_teacher(target.teacher, target.weights)


__all__ = ["check_recipe", "require_source"]
