"""Defaults of a method's arguments, taken from its backbone and its paper."""

from remask.backbones import Backbone
from remask.masking import Masking
from remask.targets import Hog, Pixels
from remask.types import Size


def masking_of(masking: Masking | float, **published: object) -> Masking:
    """The given masking; for a ratio alone, the paper's pattern at that ratio."""
    return masking if isinstance(masking, Masking) else Masking(masking, **published)  # type: ignore[arg-type]


def size_of(backbone: Backbone, size: int | Size | None) -> Size:
    """Height and width in pixels: those that the backbone was built for, unless given; one number for square images."""
    return backbone.size if size is None else (size, size) if isinstance(size, int) else size


def pixels_of(backbone: Backbone, per_patch: bool, unit: Size | None = None) -> Pixels:
    """The pixel target for the backbone's tokens, or for cells of `unit` (height, width) pixels, with its constants."""
    constants = backbone.normalise
    return Pixels(unit or backbone.patch, constants.mean, constants.std, per_patch)


def hog_of(backbone: Backbone, unit: Size | None = None, **published: object) -> Hog:
    """The HOG target for the backbone's tokens, or for cells of `unit` (height, width) pixels, as the paper has it."""
    constants, patch = backbone.normalise, unit or backbone.patch
    return Hog(patch, constants.mean, constants.std, cell=hog_cell(patch), **published)  # type: ignore[arg-type]


def hog_cell(patch: Size) -> int:
    """Side of a HOG cell in pixels: 8 as published from patches of 16 on, else half a patch, so that it has four."""
    return 8 if min(patch) >= 16 else max(min(patch) // 2, 1)


__all__ = ["hog_cell", "hog_of", "masking_of", "pixels_of", "size_of"]
