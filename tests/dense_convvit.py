"""ConvViT's masked encoder as ConvMAE's paper states it: whole maps, and a mask on the depth-wise convolution's input.

The reference for what the library computes on visible cells only. Channels first, PyTorch's own convolutions, epsilons
written out; it shares nothing with the library but the parameters, and the transformer blocks, which are timm's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from remask.backbones.convvit import ConvViT
from remask.types import Features
from remask.views import Views


class Dense(NamedTuple):
    """What the official forward computes, one row per view of an image: maps [R, C, h, w], tokens [R, N or K, D]."""

    embed1: Tensor
    stage1: Tensor
    stage2: Tensor
    embed3: Tensor
    embed4: Tensor
    fused: tuple[Tensor, Tensor]
    tokens: Tensor
    latent: Tensor


def dense(backbone: ConvViT, images: Tensor, views: Views, eps: float = 1e-6) -> Dense:
    """`images` come normalised; `tokens` leave the last block, before fusion, and `latent` the encoder.

    `eps` is that of the last norm.
    """
    net, (_, second, third) = backbone.network, backbone.network.sizes.strides
    keep2 = enlarged((~views.mask).float().flatten(0, 1).unflatten(1, views.grid).unsqueeze(1), third)
    keep1 = enlarged(keep2, second)
    embed1 = embedded(net.patch_embed1, images)
    stage1 = views.repeat(embed1)
    for block in net.blocks1:
        stage1 = convolved(block, stage1, keep1)
    stage2 = embedded(net.patch_embed2, stage1)
    for block in net.blocks2:
        stage2 = convolved(block, stage2, keep2)
    embed3 = embedded(net.patch_embed3, stage2)
    embed4 = net.patch_embed4(embed3.flatten(2).transpose(1, 2))
    x = seen(embed4 + net.pos_embed, views)
    for block in net.blocks3:
        x = block(x)
    one, two = (
        seen(F.conv2d(stage, conv.weight, conv.bias, stride=conv.stride).flatten(2).transpose(1, 2), views)
        for stage, conv in zip((stage1, stage2), backbone.fusions, strict=True)
    )
    latent = F.layer_norm(x + one + two, (backbone.width,), net.norm.weight, net.norm.bias, eps=eps)
    return Dense(embed1, stage1, stage2, embed3, embed4, (one, two), x, latent)


def seen(tokens: Tensor, views: Views) -> Tensor:
    """The visible tokens of each row, in raster order."""
    order = views.mask.flatten(0, 1).int().argsort(dim=1, stable=True)[:, : views.mask.shape[-1] - views.hidden]
    return tokens.gather(1, order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def enlarged(keep: Tensor, times: int) -> Tensor:
    return keep.repeat_interleave(times, 2).repeat_interleave(times, 3)


def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), norm.weight, norm.bias, eps=1e-5).permute(0, 3, 1, 2)


def embedded(layer: nn.Module, x: Tensor) -> Tensor:
    return F.gelu(normed(layer.norm, layer.proj(x)))


def convolved(block: nn.Module, x: Tensor, keep: Tensor) -> Tensor:
    x = x + block.conv2(block.attn(keep * block.conv1(normed(block.norm1, x))))
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(normed(block.norm2, x))))


class DenseConvViT(ConvViT):
    """A ConvViT that runs whole maps in masked views, for whole methods. It shares the parameters of another."""

    @classmethod
    def of(cls, backbone: ConvViT) -> "DenseConvViT":
        made = cls.__new__(cls)
        made.__dict__.update(backbone.__dict__)
        return made

    def embed(self, images: Tensor) -> Tensor:
        return images

    def encode(self, stem: Tensor, views: Views, fill: None = None, layers: Sequence[int] = (-1,)) -> dict:
        latent = dense(self, stem, views).latent
        return {-1: Features(latent[:, :0], latent)}
