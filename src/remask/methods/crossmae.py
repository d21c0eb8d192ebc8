"""CrossMAE: Rethinking Patch Dependence for Masked Autoencoders (Fu et al., arXiv 2401.14391)."""

from collections.abc import Sequence

from remask.backbones import Backbone
from remask.backbones.convvit_network import ConvViTNetwork
from remask.errors import UserError, setting
from remask.masking import Masking
from remask.method import Method
from remask.methods.mae import mae
from remask.targets import Target
from remask.types import Size


def crossmae(
    backbone: Backbone,
    masking: Masking | float = 0.75,
    target: Target | None = None,
    size: int | Size | None = None,
    width: int = 512,
    depth: int = 12,
    heads: int = 16,
    mlp_ratio: float = 4.0,
    layers: Sequence[int] | None = None,
) -> Method:
    """MAE with a decoder whose mask tokens attend to visible tokens only, each block to its own sum of f's layers.

    masking   a ratio, or `Masking(0.75, predicted=0.25)`: only a share γ of the tokens is predicted, at its share of
              the cost; with disjoint views predicted="once" predicts every token in one of the views that hide it
    layers    that are summed; all unless given
    width, depth, heads, mlp_ratio are the decoder's; target and size as in `mae`.
    Raises UserError for a ConvViT, whose method is convmae with decoder="cross".
    """
    if isinstance(backbone.network, ConvViTNetwork):
        cure = setting("set method.name convmae and method.decoder cross", 'use convmae(..., decoder="cross")')
        raise UserError(f"crossmae on a ConvViT is ConvMAE with a cross decoder: {cure}")
    return mae(backbone, masking, target, size, width, depth, heads, mlp_ratio, decoder="cross", layers=layers)
