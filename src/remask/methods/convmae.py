"""ConvMAE: Masked Convolution Meets Masked Autoencoders (Gao et al., arXiv 2205.03892): MAE on ConvViT."""

from collections.abc import Sequence

from torch import nn

from remask.backbones import Backbone
from remask.backbones.convvit_network import ConvViTNetwork
from remask.errors import UserError, setting
from remask.masking import Masking
from remask.method import Method
from remask.methods.decoders import Attention
from remask.methods.mae import initialise, mae
from remask.targets import Target
from remask.types import Size


def convmae(
    backbone: Backbone,
    masking: Masking | float = 0.75,
    target: Target | None = None,
    size: int | Size | None = None,
    width: int = 512,
    depth: int = 8,
    heads: int = 16,
    mlp_ratio: float = 4.0,
    decoder: Attention = "self",
    layers: Sequence[int] | None = None,
) -> Method:
    """f drops the masked cells, its convolutions see none of them; all else is MAE, but for the initial weights.

    masking, target, size, decoder and layers as in `mae`; width, depth, heads, mlp_ratio are the decoder's.
    Raises UserError for a backbone that is no ConvViT.
    # official: the decoder's MLP ratio is that of the first stage (4 in ConvMAE, 8 in DMJD); here it is an argument.
    """
    network = backbone.network
    if not isinstance(network, ConvViTNetwork):
        raise UserError(
            f"convmae trains a ConvViT, not a {type(network).__name__}: "
            f"{setting('set backbone.name = convvit_base, or method mae', 'give it one, or use mae')}"
        )
    method = mae(
        backbone, masking, target, size, width, depth, heads, mlp_ratio, _all_but_convolutions, decoder, layers
    )
    initialise(network.patch_embed3.proj)  # the only one of the convolutions; the others start as PyTorch has them
    method.restart_average()
    return method


def _all_but_convolutions(module: nn.Module) -> None:
    if not isinstance(module, nn.Conv2d):
        initialise(module)
