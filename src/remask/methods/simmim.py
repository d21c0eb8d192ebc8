"""SimMIM: A Simple Framework for Masked Image Modeling (Xie et al., arXiv 2111.09886)."""

from remask.backbones import Backbone, stem_patch
from remask.backbones.masked_input import TokensReplaced
from remask.distances import l1
from remask.errors import UserError
from remask.heads import Linear
from remask.masking import Masking
from remask.method import Branch, Method
from remask.methods.defaults import masking_of, pixels_of
from remask.methods.initial import STD, Start, initialise
from remask.targets import Target
from remask.tokens import grid_of
from remask.types import Size


def simmim(
    backbone: Backbone,
    masking: Masking | float = 0.6,
    target: Target | None = None,
    start: Start = "published",
    unit: Size | None = None,
) -> Method:
    """f replaces the masked tokens; one linear layer predicts their targets (raw pixels); l1; masked.

    As published: random cells of 32 px at ratio .6 on a BEiT-style ViT or a Swin; a Swin's cells may be smaller than
    its tokens, down to those of its stem.
    masking   a `Masking`, or the ratio of a random one, in cells of 32 px where the images have four of them a side
    target    pixels unless given
    unit      pixels (height, width) of a cell of the grid of masks and targets, if smaller than the backbone's token
    Raises UserError where such cells do not tile the backbone's tokens.
    # official: the sum over pixels / (their number + 1e-5); here the mean, which differs by 1e-9 of it
    """
    stem, patch = stem_patch(backbone), backbone.patch
    if unit and any(u % s or p % u for u, s, p in zip(unit, stem, patch, strict=True)):
        raise UserError(
            f"masks in units of {unit[0]}×{unit[1]} px do not fit tokens of {patch[0]}×{patch[1]} px, of which a mask "
            f"token replaces {stem[0]}×{stem[1]} px"
        )
    masking = masking_of(masking, cell=_published_cell(backbone.size, unit or patch), count="simmim")
    target = target or pixels_of(backbone, per_patch=False, unit=unit)
    head = Linear(backbone.width, target.width, cells_per_token=grid_of(patch, unit or patch))
    branches = [Branch("masked", head, target, l1, "masked")]
    method = Method(backbone, masking, branches, TokensReplaced(None if unit == patch else unit))
    initialise(method, bound=STD, heads=False, rescale=True, start=start)
    return method


def _published_cell(size: Size, unit: Size) -> tuple[int, ...]:
    """Tokens along the sides of a cell of 32 px; single ones where images are small or such cells do not tile them."""
    tiles = all(32 % u == 0 and pixels % 32 == 0 and pixels >= 4 * 32 for u, pixels in zip(unit, size, strict=True))
    return tuple(32 // u for u in unit) if tiles else (1, 1)
