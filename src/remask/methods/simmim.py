"""SimMIM: A Simple Framework for Masked Image Modeling (Xie et al., arXiv 2111.09886)."""

from remask.backbones import Backbone, stem_patch
from remask.distances import l1
from remask.errors import UserError
from remask.heads import Linear
from remask.masking import Masking
from remask.method import Branch, Method
from remask.methods.initial import STD, Start, initialise
from remask.targets import Target
from remask.tokens import grid_of
from remask.types import Size


def simmim(
    backbone: Backbone, masking: Masking, target: Target, start: Start = "published", unit: Size | None = None
) -> Method:
    """f replaces the masked tokens; one linear layer predicts their targets (raw pixels); l1; masked.

    As published: random cells of 32 px at ratio .6 on a BEiT-style ViT or a Swin; a Swin's cells may be smaller than
    its tokens, down to those of its stem.
    unit    pixels of the grid of masks and targets, where cells are smaller than the backbone's tokens
    Raises UserError where the backbone's tokens cannot be cut so.
    # official: the sum over pixels / (their number + 1e-5); here the mean, which differs by 1e-9 of it
    """
    stem, patch = stem_patch(backbone), backbone.patch
    if unit and any(u % s or p % u for u, s, p in zip(unit, stem, patch, strict=True)):
        raise UserError(
            f"masks in units of {unit[0]}×{unit[1]} px do not fit tokens of {patch[0]}×{patch[1]} px, of which a mask "
            f"token replaces {stem[0]}×{stem[1]} px"
        )
    head = Linear(backbone.width, target.width, fine=grid_of(patch, unit or patch))
    branches = [Branch("masked", head, target, l1, "masked")]
    method = Method(backbone, masking, branches, "tokens", None if unit == patch else unit)
    initialise(method, bound=STD, heads=False, rescale=True, start=start)
    return method
