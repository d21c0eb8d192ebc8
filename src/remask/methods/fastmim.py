"""FastMIM: Expediting Masked Image Modeling Pre-training for Vision (Guo et al., arXiv 2212.06593)."""

from torch import nn

from remask.backbones import Backbone
from remask.backbones.masked_input import PixelsReplaced
from remask.distances import squared
from remask.heads import TokenDecoder
from remask.masking import Masking
from remask.method import Branch, Method
from remask.methods.defaults import hog_of, masking_of
from remask.methods.initial import STD
from remask.methods.mae import initialise
from remask.targets import Target
from remask.tokens import grid_of
from remask.types import Size


def fastmim(
    backbone: Backbone,
    masking: Masking | float = 0.75,
    target: Target | None = None,
    unit: Size | None = None,
    width: int = 256,
    depth: int = 1,
    heads: int = 8,
    mlp_ratio: float = 4.0,
) -> Method:
    """f sees masked pixels as one learned colour; a small decoder over all tokens predicts their HOG; squared; masked.

    As published: images of 128 px, cells of 16 or 32 px at ratio .75, any network that returns a map of features.
    masking   a `Masking`, or the ratio of a random one
    target    HOG in MaskFeat's flavour unless given
    unit      pixels (height, width) of a cell of the grid of masks and targets, if smaller than the backbone's token
    width, depth, heads, mlp_ratio are the decoder's.
    """
    target = target or hog_of(backbone, unit, flavour="sobel", norm="l2")
    cells_per_token = grid_of(backbone.patch, unit or backbone.patch)
    eps = 1e-6 if backbone.prefix else 1e-5
    head = TokenDecoder(backbone.width, target.width, width, depth, heads, mlp_ratio, cells_per_token, eps)
    branches = [Branch("masked", head, target, squared, "masked")]
    method = Method(backbone, masking_of(masking), branches, PixelsReplaced(unit))
    method.apply(initialise)  # linear layers and patch convolutions as MAE's, the rest as the network's authors have it
    for name, parameter in method.named_parameters():
        if name.endswith(("_token", "mask_pixel")):
            nn.init.normal_(parameter, std=STD)
        if name.startswith("backbone.fusions."):  # ConvViT's, which serve masked views alone
            parameter.requires_grad_(False)
    return method
