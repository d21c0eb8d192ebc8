"""DMAE: Masked Autoencoders Enable Efficient Knowledge Distillers (Bai et al., arXiv 2208.12256)."""

from collections.abc import Sequence
from typing import Literal

from remask.backbones import Backbone
from remask.distances import l1_unit, squared_unit
from remask.errors import UserError
from remask.heads import ProjectionHead
from remask.masking import Masking
from remask.method import Branch, Method, Region
from remask.methods.decoders import Attention
from remask.methods.mae import mae
from remask.targets import Target, prefix
from remask.types import Size

DISTANCES = {"l1": l1_unit, "squared": squared_unit}


def dmae(
    backbone: Backbone,
    masking: Masking | float,
    target: Target | None,
    teachers: Sequence[Target],
    size: int | Size | None,
    layers: Sequence[int],
    *,
    head: Literal["linear", "mlp"] = "linear",
    distance: Literal["l1", "squared"] = "l1",
    width: int = 512,
    depth: int = 8,
    heads: int = 16,
    mlp_ratio: float = 4.0,
    weight: float = 1.0,
    decoder: Attention = "self",
    decoder_layers: Sequence[int] | None = None,
) -> Method:
    """MAE, and blocks of f aligned with a teacher's that sees the same view; l1 of unit vectors; all encoded tokens.

    As published: ratio .75 to .98, raw pixels, block 8 of a ViT-B with block 17 of a ViT-L, 3/4 of both depths.
    teachers   blocks of a frozen network: `TokenTeacher` with sees="view"
    layers     the student's block for each, -1 for the last
    decoder, decoder_layers   as decoder and layers of `mae`
    width, depth, heads, mlp_ratio are the decoder's; `weight` is that of each alignment.
    """
    if len(layers) != len(teachers) or not layers:
        raise UserError(
            f"{len(layers)} blocks cannot be aligned with {len(teachers)} teachers: name one block for each"
        )
    if not all(-1 <= layer < backbone.depth for layer in layers):
        raise UserError(f"the backbone has blocks 0 to {backbone.depth - 1}: one of {[*layers]} cannot be aligned")
    method = mae(
        backbone, masking, target, size, width, depth, heads, mlp_ratio, decoder=decoder, layers=decoder_layers
    )
    branches = []
    for i, (teacher, layer) in enumerate(zip(teachers, layers, strict=True)):
        region, name = region_of(backbone, teacher), f"align{i}" if len(teachers) > 1 else "align"
        align = ProjectionHead(
            backbone.width, teacher.width, head, region
        )  # official: created after MAE's initialisation, so without it
        branches.append(Branch(name, align, teacher, DISTANCES[distance], region, weight, layer % backbone.depth))
    return method.with_(branches=[*method.branches, *branches])


def region_of(backbone: Backbone, teacher: Target) -> Region:
    """The region "encoded" if both networks have as many prefix tokens, else the visible tokens alone."""
    return "encoded" if 0 < backbone.prefix == prefix(teacher) else "visible"
