"""[distill] → frozen teachers as targets (DMAE, MOMA)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm

from remask.backbones import Backbone
from remask.backbones.vit import SMALL
from remask.errors import UserError, naming
from remask.interop.encoder_files import NORMALISATIONS
from remask.interop.encoders import open_encoder
from remask.interop.loaded import loaded_of, remember
from remask.interop.teachers import open_teacher
from remask.recipe import Recipe
from remask.recipe.distill import TeacherSection
from remask.recipe.networks import MAPS
from remask.seeds import seeded
from remask.targets import Target, TokenTeacher
from remask.targets.cached import Cached
from remask.targets.map_teacher import MapTeacher
from remask.types import Size


def build_teachers(recipe: Recipe, patch: Size) -> list[Target]:
    """The frozen teachers of [distill] as targets: dmae's encode the student's view, moma's the whole image.

    patch   pixels (h, w) of the student's token. Raises UserError for a teacher that cannot be opened or does not fit.
    """
    assert recipe.distill
    teachers, cache = list[Target](), recipe.distill.cache
    for teacher in recipe.distill.teachers:
        with naming(teacher.stated()):
            teachers.append(_teacher(teacher, recipe, patch))
    return [Cached(teacher, Path(cache)) for teacher in teachers] if cache else teachers


def _teacher(teacher: TeacherSection, recipe: Recipe, patch: Size) -> Target:
    data, of_view = recipe.data, recipe.method.name == "dmae"
    if _gives_map(teacher):
        if of_view:
            raise UserError(f"the teacher {teacher.source} sees whole images, and dmae's see a view: use method moma")
        _refuse(teacher, ("heads", "layer", "size", "final_norm"), "has a map of features and no tokens")
        _refuse(teacher, ("normalise", "mean", "std"), "is known to normalise its pictures in its own way")
        return map_teacher(teacher.source, teacher.weights, "layer", recipe, patch)
    _refuse(teacher, ("weights",), "names its own weights")
    size, (mean, std) = teacher.size or data.image_size, _constants(teacher)
    with seeded(
        0, teacher.source
    ):  # leaves the student's random state alone; an untrained teacher is the same in every run
        backbone = open_encoder(teacher.source, heads=teacher.heads, size=size, mean=mean, std=std)
    three_quarters = backbone.depth * 3 // 4 - 1
    layer = teacher.layer if teacher.layer is not None else three_quarters if of_view else -1
    target = TokenTeacher(
        backbone, patch, data.mean, data.std, layer=layer, sees="view" if of_view else "image",
        norm="unit" if of_view else "layer", final_norm=teacher.final_norm, size=teacher.size, name=teacher.source,
    )  # fmt: skip
    remember(target, loaded_of(backbone))
    return target


def _constants(teacher: TeacherSection) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Mean and deviation that the recipe states; None leaves them to the kind of the teacher."""
    if teacher.normalise:
        return NORMALISATIONS[teacher.normalise]
    return teacher.mean, teacher.std


def _refuse(teacher: TeacherSection, keys: tuple[str, ...], why: str) -> None:
    """Raise UserError for those of `keys` that the recipe sets but this teacher would ignore."""
    if stated := [key for key in keys if getattr(teacher, key) != TeacherSection.model_fields[key].default]:
        vain = " and ".join(f"distill.teachers.{key}" for key in stated)
        raise UserError(f"the teacher {teacher.source} {why}: leave out {vain}")


def map_teacher(source: str, weights: str | None, norm: Any, recipe: Recipe, patch: Size) -> MapTeacher:
    """A frozen teacher whose output is a feature map: a convolutional network, CLIP, an autoencoder."""
    with seeded(0, source):
        network, mean, std, size, width = open_teacher(source, weights)
    target = MapTeacher(
        network, patch, recipe.data.mean, recipe.data.std,
        teacher_mean=mean, teacher_std=std, size=size, norm=norm, width=width, name=source,
    )  # fmt: skip
    remember(target, loaded_of(network))
    return target


def _gives_map(teacher: TeacherSection) -> bool:
    """Whether a teacher outputs a feature map, not tokens: by its kind, or for timm by the module that defines it."""
    kind, _, name = teacher.source.partition(":")
    if kind not in ("timm", "untrained") or name in SMALL or not timm.is_model(name):
        return kind in MAPS
    plain = timm.models.model_entrypoint(name).__module__.endswith(("vision_transformer", "deit"))
    return not plain or teacher.weights is not None


def student_layers(recipe: Recipe, backbone: Backbone) -> list[int]:
    """Index of the student's block for each dmae teacher: the recipe's, or the one at 3/4 of the depth."""
    assert recipe.distill
    return recipe.distill.layers or [backbone.depth * 3 // 4 - 1] * len(recipe.distill.teachers)


def weight_of(teacher: TeacherSection, unstated: float) -> float:
    """Loss weight λ of a teacher's branch: the recipe's, or `unstated`."""
    return unstated if teacher.weight is None else teacher.weight


__all__ = ["build_teachers", "map_teacher", "student_layers", "weight_of"]
