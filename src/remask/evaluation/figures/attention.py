"""Attention maps: where a block of a vision transformer looks, head by head, laid over the pictures.

From the class token to the patches, as DINO draws them (2104.14294, figure 1); without a class token the mean over all
patches, so what is looked at rather than who looks. The block's queries and keys are computed again from its input, so
that fused attention, which keeps no weights, makes no difference.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from timm.models.beit import Attention as BeitAttention
from timm.models.vision_transformer import Attention
from torch import Tensor

from remask.backbones import Backbone
from remask.backbones.beit import BeitViT
from remask.backbones.convvit import ConvViT
from remask.backbones.vit import ViT
from remask.errors import UserError
from remask.evaluation.figures.sheet import Panel, Reconstruction, rgb, sheet
from remask.evaluation.probing.features import evaluating
from remask.types import Images

_HEAT = 0.6
"""Share of the colours of attention in a picture."""


def attention_maps(backbone: Backbone, images: Images, block: int = -1) -> Float[Tensor, "B heads h w"]:
    """Attention on every patch of the grid, per head; a map sums to at most 1, the rest is on prefix tokens.

    block   its number; -1 is the last
    Raises UserError for a network without attention over all tokens (Swin, PVT, convolutions), or without that block.
    """
    attention, number = _attention(backbone, block)
    x = _input(backbone, attention, number, images)
    with torch.inference_mode():
        weights = _weights(attention, x, _bias(backbone, attention, images))
    prefix, grid = backbone.prefix, backbone.grid((images.shape[-2], images.shape[-1]))
    asks_one = getattr(backbone.network, "cls_token", None) is not None
    on_patches = weights[:, :, 0, prefix:] if asks_one else weights[:, :, prefix:, prefix:].mean(2)
    return on_patches.unflatten(-1, grid).clone().cpu()


def _attention(backbone: Backbone, block: int) -> tuple[Any, int]:
    """The attention of a block, and the block's number."""
    network: Any = backbone.network
    blocks: Any = network.blocks3 if isinstance(backbone, ConvViT) else getattr(network, "blocks", ())
    known = isinstance(backbone, ViT | BeitViT | ConvViT)
    if not known or not isinstance(getattr(blocks[-1], "attn", None), Attention | BeitAttention):
        raise UserError(
            f"{type(network).__name__} has no plain attention over all tokens to draw; "
            "attention maps need a vision transformer (ViT, BEiT, ConvViT)"
        )
    if not -len(blocks) <= block < len(blocks):
        raise UserError(f"block {block} does not exist: blocks are 0 to {len(blocks) - 1}, and -1 is the last")
    return blocks[block].attn, block % len(blocks)


def _input(backbone: Backbone, attention: Any, number: int, images: Images) -> Float[Tensor, "B T D"]:
    """What the attention of a block is given."""
    network: Any = backbone.network
    over_image: list[Tensor] = []
    if isinstance(attention, BeitAttention):  # whose attention is computed without calling it
        hook = network.blocks[number].norm1.register_forward_hook(lambda module, given, out: over_image.append(out))
    else:
        hook = attention.register_forward_pre_hook(lambda module, given: over_image.append(given[0]))
    try:
        with torch.inference_mode(), evaluating([backbone]):
            backbone.encode(backbone.embed(images.to(next(network.parameters()).device)), layers=(number,))
    finally:
        hook.remove()
    return over_image[0].float()


def _bias(backbone: Backbone, attention: Any, images: Images) -> Float[Tensor, "heads T T"] | None:
    """What BEiT's tables of relative positions add, the shared one and the block's own."""
    if not isinstance(backbone, BeitViT):
        return None
    grid = backbone.grid((images.shape[-2], images.shape[-1]))
    holders = [module for module in (backbone.network.rel_pos_bias, attention) if module is not None]
    biases = [backbone.bias(module, grid) for module in holders if module.relative_position_bias_table is not None]
    return torch.stack(biases).sum(0) if biases else None


def _weights(
    attention: Any, x: Float[Tensor, "B T D"], bias: Float[Tensor, "heads T T"] | None
) -> Float[Tensor, "B heads T T"]:
    """softmax(q·k / √d + bias): each query's attention on all keys."""
    qkv = attention.qkv(x)
    if getattr(attention, "q_bias", None) is not None:
        qkv = qkv + torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    q, k, _ = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    if isinstance(attention, Attention):
        q, k = attention.q_norm(q), attention.k_norm(k)
    scores = (q * attention.scale) @ k.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(-1)


def attention_sheet(
    images: UInt8[Tensor, "B C H W"], maps: Float[Tensor, "B heads h w"], notes: Sequence[str] = ()
) -> bytes:
    """A PNG with a row per image: itself, the mean over the heads, and each head; brightest where attention is most."""
    rows = []
    for image, heads in zip(images, maps, strict=True):
        enlarged = rgb(image)
        panels = [Panel("original", enlarged), Panel("mean of heads", overlay(enlarged, heads.mean(0)))]
        panels += [Panel(f"head {number + 1}", overlay(enlarged, head)) for number, head in enumerate(heads)]
        rows.append(panels)
    return sheet(Reconstruction(rows, [*notes, "Every map is scaled to its own maximum."]))


def overlay(image: UInt8[Tensor, "Y X 3"], attention: Float[Tensor, "h w"]) -> UInt8[Tensor, "Y X 3"]:
    """The image in grey under the colours of attention, one colour a patch."""
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
