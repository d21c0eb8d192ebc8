"""Backbones by name: which function creates one, by the beginning of its name, for recipes and for exports."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from remask.backbones import Backbone
from remask.backbones.beit import create_beit
from remask.backbones.convvit import create_convvit
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.refusals import is_plain
from remask.backbones.swin import create_swin
from remask.backbones.vit import create_vit
from remask.errors import UserError
from remask.types import Size

NETWORKS: Mapping[str, Callable[..., Backbone]] = {
    "convvit": create_convvit, "beit": create_beit, "swin_": create_swin, "vit_": create_vit, "deit": create_vit,
    "": create_hierarchical,
}  # fmt: skip
"""Beginning of a name -> its `create_…` function; all other networks return a map of features."""


def tag_of(name: str) -> str | None:
    """The weights that a timm name asks for: "augreg_in21k" of vit_tiny_patch16_224.augreg_in21k; None without any."""
    base, _, tag = name.partition(".")
    return tag if tag and timm.is_model(base) else None


def refuse_tag(name: str) -> None:
    """Raise UserError where a name that is to have random weights has the tag of trained ones."""
    if tag := tag_of(name):
        base = name.partition(".")[0]
        raise UserError(
            f"untrained:{name} contradicts itself, for .{tag} names trained weights: give untrained:{base} for random "
            f"ones, or timm:{name} for those"
        )


def creator_of(name: str) -> Callable[..., Backbone]:
    """The `create_…` function of a name; `create_hierarchical` for a vit_… that is no plain vision transformer."""
    creator = next(create for start, create in NETWORKS.items() if name.startswith(start))
    return create_hierarchical if creator is create_vit and not is_plain(name) else creator


def create_backbone(
    name: str,
    size: int | Size,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    **options: Any,
) -> Backbone:
    """A backbone of any kind by name, with random weights: timm's names, and the small ones here (vit_micro).

    size      of the images, height and width in pixels; one number for square ones
    mean, std of the channels, of values in 0..1; as many as the images have channels. ImageNet's unless given
    options   `overrides`, timm's own arguments; `drop_path`; for a ViT `positions`, "sincos" or "learned"
    Raises UserError for an unknown name, one with a tag of trained weights, or a size that the network does not take.
    """
    if tag_of(name):
        base = name.partition(".")[0]
        raise UserError(f"{name} names trained weights, and this makes random ones: give {base!r}, and load yours")
    return creator_of(name)(name, (size, size) if isinstance(size, int) else size, mean, std, **options)


__all__ = ["NETWORKS", "create_backbone", "creator_of", "refuse_tag", "tag_of"]
