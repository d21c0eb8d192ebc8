"""Attention maps of a block of a vision transformer, per head, drawn over the images.

Attention of the class token on the patches, as in DINO (2104.14294, figure 1), the mean of several; without a class
token the mean over the queries of all patches.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from remask.backbones import Backbone, class_tokens
from remask.backbones.attention import attending_blocks, attention_weights
from remask.errors import UserError
from remask.evaluation.figures.sheet import Panel, Reconstruction, rgb, sheet
from remask.evaluation.probing.features import evaluating
from remask.types import Images

_HEAT = 0.6
"""Opacity of the attention over the image."""


def attention_maps(backbone: Backbone, images: Images, block: int = -1) -> Float[Tensor, "B heads h w"]:
    """Attention on every patch of the grid, per head; a map sums to at most 1, for the rest is on prefix tokens.

    block   index of the block; -1 is the last
    Raises UserError for a network without attention over all tokens (Swin, PVT, convolutions), or without that block.
    """
    blocks = attending_blocks(backbone)
    if not blocks:
        raise UserError(
            f"{type(backbone.network).__name__} has no plain attention over all tokens to draw; "
            "attention maps need a vision transformer (ViT, BEiT, ConViT)"
        )
    if not -len(blocks) <= block < len(blocks):
        raise UserError(f"block {block} does not exist: blocks are 0 to {len(blocks) - 1}, and -1 is the last")
    with torch.inference_mode(), evaluating([backbone]):
        images = images.to(next(backbone.network.parameters()).device)
        weights = attention_weights(backbone, images, block % len(blocks))
    prefix, grid = backbone.prefix, backbone.grid((images.shape[-2], images.shape[-1]))
    has_class_token = getattr(backbone.network, "cls_token", None) is not None
    queries = slice(0, class_tokens(backbone)) if has_class_token else slice(prefix, None)
    on_patches = weights[:, :, queries, prefix:].mean(2)
    return on_patches.unflatten(-1, grid).clone().cpu()


def attention_sheet(
    images: UInt8[Tensor, "B C H W"], maps: Float[Tensor, "B heads h w"], notes: Sequence[str] = ()
) -> bytes:
    """A PNG with a row per image: the image, the mean over the heads, and each head; bright means high attention."""
    rows = []
    for image, heads in zip(images, maps, strict=True):
        enlarged = rgb(image)
        panels = [Panel("original", enlarged), Panel("mean of heads", overlay(enlarged, heads.mean(0)))]
        panels += [Panel(f"head {number + 1}", overlay(enlarged, head)) for number, head in enumerate(heads)]
        rows.append(panels)
    return sheet(Reconstruction(rows, [*notes, "Every map is scaled to its own maximum."]))


def overlay(image: UInt8[Tensor, "Y X 3"], attention: Float[Tensor, "h w"]) -> UInt8[Tensor, "Y X 3"]:
    """The image in grey blended with the colours of attention, one colour per patch."""
    import matplotlib

    rows, columns = attention.shape
    share = attention / attention.max().clamp(min=1e-12)
    share = share.repeat_interleave(-(-image.shape[0] // rows), 0).repeat_interleave(-(-image.shape[1] // columns), 1)[
        : image.shape[0], : image.shape[1]
    ]
    heat = torch.from_numpy(np.asarray(matplotlib.colormaps["inferno"](share.numpy())))[..., :3].float() * 255
    grey = image.float().mean(-1, keepdim=True)
    return (_HEAT * heat + (1 - _HEAT) * grey).round().clamp(0, 255).to(torch.uint8)


__all__ = ["attention_maps", "attention_sheet", "overlay"]
