"""timm's transformer block computed for some of its tokens only: exact, and cheaper by the rest.

A decoder's mask token plus its position is the same in every image, so are its queries, keys and values in the first
block; and of the last block only the rows that are predicted are needed.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor


def entered(
    block: Block,
    unmasked: Float[Tensor, "R S D"],
    places: Float[Tensor, "N D"],
    ids: Int[Tensor, "R M"],
    rows: int | None = None,
) -> Float[Tensor, "R T D"]:
    """The first decoder block on the T = S + M tokens [prefix and visible, mask tokens at `ids`]; its last `rows` rows.

    places   the mask token plus the position of each of the N tokens of the grid
    rows     all unless given
    The R·M mask tokens are rows of `places`: queries, keys and values are projected for the fewer of R·M and N.
    """
    attention = block.attn
    x = torch.cat([unmasked, F.embedding(ids, places).to(unmasked.dtype)], dim=1)
    if ids.numel() <= len(places):
        qkv = attention.qkv(block.norm1(x))
    else:
        projected = F.embedding(ids, attention.qkv(block.norm1(places)))
        qkv = torch.cat([attention.qkv(block.norm1(unmasked)), projected], dim=1)
    q, k, v = by_head(qkv, attention.num_heads)
    count = rows or x.shape[1]
    return mixed(block, x[:, -count:], q[:, :, -count:], k, v)


def last_rows(block: Block, x: Float[Tensor, "R T D"], count: int) -> Float[Tensor, "R M D"]:
    """A block's output for the last `count` tokens alone, M = `count`, which attend to all T."""
    attention, width, normed = block.attn, x.shape[-1], block.norm1(x)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    q = by_head(F.linear(normed[:, -count:], weight[:width], bias[:width]), attention.num_heads, 1)
    kv = by_head(F.linear(normed, weight[width:], bias[width:]), attention.num_heads, 2)
    return mixed(block, x[:, -count:], *q, *kv)


def by_head(x: Float[Tensor, "R T nD"], heads: int, tensors: int = 3) -> Sequence[Float[Tensor, "R h T d"]]:
    """Queries, keys and values (n = `tensors` of them, one after the other) cut into attention heads."""
    return x.unflatten(-1, (tensors, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def mixed(
    block: Any,
    x: Float[Tensor, "R Q D"],
    q: Float[Tensor, "R h Q d"],
    k: Float[Tensor, "R h T d"],
    v: Float[Tensor, "R h T d"],
) -> Float[Tensor, "R Q D"]:
    """The rest of a block after queries, keys and values: attention, its projection, the MLP, and both residuals.

    block   a `Block`, or whatever has its attn, norm2 and mlp
    """
    attention = block.attn
    if attention.fused_attn:
        mixed = F.scaled_dot_product_attention(q, k, v)
    else:
        mixed = ((q * attention.scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))
