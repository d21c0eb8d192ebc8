"""Attention maps of a block of a vision transformer, per head, drawn over the images.

Attention of the class token on the patches, as in DINO (2104.14294, figure 1), the mean of several; without a class
token the mean over the queries of all patches. Queries and keys are recomputed from the block's input, for fused
attention stores no weights.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from timm.models.beit import Attention as BeitAttention
from timm.models.vision_transformer import Attention
from torch import Tensor

from remask.backbones import Backbone, class_tokens
from remask.backbones.beit import BeitViT
from remask.backbones.convvit import ConvViT
from remask.backbones.vit import ViT
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
    attention, number = _attention(backbone, block)
    x = _input(backbone, attention, number, images)
    with torch.inference_mode():
        weights = _weights(attention, x, _bias(backbone, attention, images))
    prefix, grid = backbone.prefix, backbone.grid((images.shape[-2], images.shape[-1]))
    has_class_token = getattr(backbone.network, "cls_token", None) is not None
    queries = slice(0, class_tokens(backbone)) if has_class_token else slice(prefix, None)
    on_patches = weights[:, :, queries, prefix:].mean(2)
    return on_patches.unflatten(-1, grid).clone().cpu()


def _attention(backbone: Backbone, block: int) -> tuple[Any, int]:
    """The attention module of a block, and the block's index from 0. Raises UserError."""
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
    """The input of a block's attention module."""
    network: Any = backbone.network
    captured: list[Tensor] = []
    if isinstance(attention, BeitAttention):  # computed without calling the module, so hook the norm before it
        hook = network.blocks[number].norm1.register_forward_hook(lambda module, arguments, out: captured.append(out))
    else:
        hook = attention.register_forward_pre_hook(lambda module, arguments: captured.append(arguments[0]))
    try:
        with torch.inference_mode(), evaluating([backbone]):
            backbone.encode(backbone.embed(images.to(next(network.parameters()).device)), layers=(number,))
    finally:
        hook.remove()
    return captured[0].float()


def _bias(backbone: Backbone, attention: Any, images: Images) -> Float[Tensor, "heads T T"] | None:
    """The sum of BEiT's relative position biases, shared and of the block; None for other networks."""
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
