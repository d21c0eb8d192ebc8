"""Attention weights of a block of a vision transformer: queries and keys recomputed from the block's input.

Fused attention stores no weights; so does no block that is left as timm has it.
"""

from typing import Any

import torch
from jaxtyping import Float
from timm.models.beit import Attention as BeitAttention
from timm.models.vision_transformer import Attention
from torch import Tensor

from remask.backbones import Backbone
from remask.backbones.beit import BeitViT
from remask.backbones.convvit import ConvViT
from remask.backbones.vit import ViT
from remask.distances import full_precision
from remask.errors import UserError, setting
from remask.types import Images

ALL = slice(None)


def attending_blocks(backbone: Backbone) -> list[Any]:
    """The blocks with plain attention over all tokens: those of a ViT, a BEiT, the last of a ConViT; else none."""
    network: Any = backbone.network
    if not isinstance(backbone, ViT | BeitViT | ConvViT):
        return []
    blocks = network.blocks3 if isinstance(backbone, ConvViT) else network.blocks
    return [*blocks] if isinstance(getattr(blocks[-1], "attn", None), Attention | BeitAttention) else []


def attention_weights(
    backbone: Backbone, images: Images, block: int, queries: slice = ALL
) -> Float[Tensor, "B heads Q T"]:
    """softmax(q·k / √d + bias): attention of some tokens on all, prefix tokens first, in fp32.

    block     index of one of `attending_blocks`, from 0
    queries   of which tokens
    """
    attention = attending_blocks(backbone)[block].attn
    x = _input(backbone, attention, block, images)
    with full_precision(x.device):
        return _weights(attention, x, _bias(backbone, attention, images), queries)


def class_attention(backbone: Backbone, images: Images) -> Float[Tensor, "B N"]:
    """The class token's attention on every token of the grid in the last block, mean over the heads."""
    weights = attention_weights(backbone, images, backbone.depth - 1, slice(0, 1))
    return weights[:, :, 0, backbone.prefix :].mean(1)


def refuse_without_class_attention(backbone: Backbone) -> None:
    """Raise UserError for a network whose class token's attention cannot be read, or that has no class token."""
    name = type(backbone.network).__name__
    why = f"the attention of {name} cannot be read"
    if attending_blocks(backbone):
        if getattr(backbone.network, "cls_token", None) is not None:
            return
        why = f"{name} has no class token"
    cure = setting("set masking.pattern loss or green, or backbone.name to", "choose other masks, or")
    raise UserError(
        f"{setting('masking.pattern attention goes', 'these masks go')} by what a class token attends to, and {why}: "
        f"{cure} a plain vit, or a beit"
    )


def _input(backbone: Backbone, attention: Any, number: int, images: Images) -> Float[Tensor, "B T D"]:
    """The input of a block's attention module."""
    network: Any = backbone.network
    captured: list[Tensor] = []
    if isinstance(attention, BeitAttention):  # computed without calling the module, so hook the norm before it
        hook = network.blocks[number].norm1.register_forward_hook(lambda module, arguments, out: captured.append(out))
    else:
        hook = attention.register_forward_pre_hook(lambda module, arguments: captured.append(arguments[0]))
    try:
        backbone.encode(backbone.embed(images), layers=(number,))
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
    attention: Any, x: Float[Tensor, "B T D"], bias: Float[Tensor, "heads T T"] | None, queries: slice
) -> Float[Tensor, "B heads Q T"]:
    qkv = attention.qkv(x)
    if getattr(attention, "q_bias", None) is not None:
        qkv = qkv + torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    q, k, _ = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    q = q[:, :, queries]
    if isinstance(attention, Attention):
        q, k = attention.q_norm(q), attention.k_norm(k)
    scores = (q * attention.scale) @ k.transpose(-2, -1)
    return (scores if bias is None else scores + bias[:, queries]).softmax(-1)


__all__ = [
    "attending_blocks", "attention_weights", "class_attention", "refuse_without_class_attention",
]  # fmt: skip
