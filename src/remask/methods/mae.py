"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., arXiv 2111.06377)."""

from collections.abc import Callable, Sequence

from torch import nn

from remask.backbones import Backbone
from remask.distances import squared
from remask.masking import Masking
from remask.method import Branch, Method, Region
from remask.methods.decoders import Attention, DecoderSizes, create_decoder
from remask.methods.defaults import masking_of, pixels_of, size_of
from remask.targets import Target
from remask.types import Size


def mae(
    backbone: Backbone,
    masking: Masking | float = 0.75,
    target: Target | None = None,
    size: int | Size | None = None,
    width: int = 512,
    depth: int = 8,
    heads: int = 16,
    mlp_ratio: float = 4.0,
    initial: Callable[[nn.Module], None] | None = None,
    decoder: Attention = "self",
    layers: Sequence[int] | None = None,
) -> Method:
    """f drops the masked tokens; a decoder predicts their targets (pixels, normalised per patch); squared; masked.

    masking   a `Masking`, or the ratio of a random one; its `predicted` may restrict the loss to some masked tokens
    target    pixels normalised per patch unless given
    size      of the images in pixels, one number or height and width; the backbone's unless given
    decoder   "self", or "cross" for CrossMAE's
    layers    of the backbone that the decoder reads, as `create_decoder` has them
    width, depth, heads, mlp_ratio are the decoder's. `initial` gives each module its first weights, in place of MAE's.
    """
    target = target or pixels_of(backbone, per_patch=True)
    grid, masking = backbone.grid(size_of(backbone, size)), masking_of(masking)
    sizes = DecoderSizes(width, depth, heads, mlp_ratio)
    head, layer = create_decoder(backbone, target, grid, masking, sizes, decoder, layers)
    region: Region = "masked" if masking.predicted == "all" else "predicted"
    method = Method(backbone, masking, [Branch("masked", head, target, squared, region, layer=layer)])
    method.apply(initial or initialise)
    initialise_tokens(method)
    method.restart_average()
    return method


def initialise(module: nn.Module) -> None:
    """MAE's initial weights: Xavier-uniform linear layers, the patch convolution as if it were one, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d) and module.kernel_size == module.stride != (1, 1):
        nn.init.xavier_uniform_(module.weight.flatten(1).view(module.out_channels, -1))


def initialise_tokens(method: Method) -> None:
    """MAE's class and mask tokens: normal of deviation .02."""
    for name, parameter in method.named_parameters():
        if name.endswith("_token"):
            nn.init.normal_(parameter, std=0.02)
