"""The training step as a textbook writes it, to be measured beside ours: as the official code of MAE and DMJD has it.

Written from the papers and from facts about that code; nothing is taken from it. What it does that ours does not:

- the convolution embeds every patch of the normalised image, and each view then takes the tokens it sees
- ConViT's stages of convolutions run whole maps of all views, channels first; a mask multiplies the depth-wise input
- attention is two matrix products and a softmax between them, as timm 0.3 has it
- the decoder puts all tokens back into their places, runs every block whole and predicts every token
- targets are repeated per view; HOG spreads each pixel over an axis of bins
- AdamW is PyTorch's for-loop

A `Reference` is made of the very layers of a `Method`, copied, under the same names: for the same views loss and
gradients are the same, which tests/unit/test_reference.py holds it to. As in the official code an image is embedded
once, and copied to its views after that; its HOG is computed once.
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.hog import textbook
from remask.backbones.convvit import ConvViT
from remask.backbones.vit import ViT
from remask.heads import Decoder, Projector
from remask.method import Method
from remask.targets import Hog, Target
from remask.training.optim import parameter_groups
from remask.types import Images
from remask.views import Views


class Prepared(NamedTuple):
    """What the official loaders hand over: the normalised picture, and the bytes that HOG is taken of."""

    pixels: Tensor
    raw: Tensor


class Order(NamedTuple):
    """Which tokens a row keeps, the inverse of the order kept tokens first, and 1.0 where a token is masked."""

    keep: Tensor
    restore: Tensor
    mask: Tensor


class Reference(nn.Module):
    """MAE, ConvMAE and their DM and DMJD: a decoder for masked tokens, and maybe a projector for visible ones."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        method = copy.deepcopy(method)
        assert all(isinstance(b.head, Decoder if b.region == "masked" else Projector) for b in method.branches)
        self.backbone, self.branches, self.draw = method.backbone, method.branches, method.draw
        self.encoder = vit if isinstance(method.backbone, ViT) else convvit
        assert isinstance(method.backbone, ViT | ConvViT)

    def prepare(self, images: Images) -> Prepared:
        """Outside of the step."""
        return Prepared(self.backbone.normalise(images), images)

    def forward(self, images: Prepared, views: Views) -> dict[str, Tensor]:
        """Losses by branch and their "total", as `Method` has them."""
        order = ordered(views)
        prefix, latent = self.encoder(self.backbone, images.pixels, order)
        with torch.no_grad():
            targets = {t: views.repeat(target_of(t, images)) for t in {branch.target for branch in self.branches}}
        losses = {}
        for branch in self.branches:
            target = targets[branch.target]
            if branch.region == "masked":
                error = branch.distance(decoded(branch.head, prefix, latent, order).float(), target)
                losses[branch.name] = (error * order.mask).sum() / order.mask.sum()
            else:
                predicted = branch.head.predict(branch.head.project(latent))
                losses[branch.name] = branch.distance(predicted.float(), taken(target, order.keep)).mean()
        return {**losses, "total": sum(branch.weight * losses[branch.name] for branch in self.branches)}

    def optimizer(self, lr: float = 1e-4, weight_decay: float = 0.05) -> torch.optim.AdamW:
        """AdamW as torch 1.x had it: one parameter after the other."""
        groups = parameter_groups(self.named_parameters(), weight_decay)
        return torch.optim.AdamW(groups, lr, (0.9, 0.95), foreach=False, fused=False)


def ordered(views: Views) -> Order:
    """The official shuffle; there in the order of the noise, which nothing minds."""
    mask = views.mask.flatten(0, 1)
    shuffle = mask.int().argsort(dim=1, stable=True)
    return Order(shuffle[:, : mask.shape[1] - views.hidden], shuffle.argsort(dim=1), mask.float())


def target_of(target: Target, images: Prepared) -> Tensor:
    """Of every token of an image: HOG in the form of its code, pixels of the normalised image."""
    return textbook(target, images.raw) if isinstance(target, Hog) else target(images.pixels, None)


def taken(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows by number."""
    return torch.gather(tokens, 1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def copied(x: Tensor, order: Order) -> Tensor:
    """Copies of what is computed once an image, row = v·B + b."""
    return x.repeat(len(order.mask) // len(x), *[1] * (x.ndim - 1))


def attention(layer: nn.Module, x: Tensor) -> Tensor:
    """Softmax over a matrix that is written out."""
    rows, tokens, width = x.shape
    qkv = layer.qkv(x).reshape(rows, tokens, 3, layer.num_heads, width // layer.num_heads).permute(2, 0, 3, 1, 4)
    weights = (qkv[0] @ qkv[1].transpose(-2, -1) * layer.scale).softmax(dim=-1)
    return layer.proj((weights @ qkv[2]).transpose(1, 2).reshape(rows, tokens, width))


def transformed(blocks: nn.Module, x: Tensor) -> Tensor:
    """Pre-norm transformer blocks."""
    for block in blocks:
        x = x + attention(block.attn, block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    return x


def vit(backbone: ViT, pixels: Tensor, order: Order) -> tuple[Tensor, Tensor]:
    """Class token and visible tokens after the final norm."""
    net = backbone.network
    positions = net.pos_embed
    x = net.patch_embed.proj(pixels).flatten(2).transpose(1, 2) + positions[:, 1:]
    x = taken(copied(x, order), order.keep)
    first = (net.cls_token + positions[:, :1]).expand(len(x), -1, -1)
    x = net.norm(transformed(net.blocks, torch.cat([first, x], dim=1)))
    return x[:, :1], x[:, 1:]


def convvit(backbone: ConvViT, pixels: Tensor, order: Order) -> tuple[Tensor, Tensor]:
    """No class token, and visible tokens after fusion and final norm."""
    net, (_, second, third) = backbone.network, backbone.network.sizes.strides
    rows, columns = net.grid((pixels.shape[-2], pixels.shape[-1]))
    seen = (1 - order.mask).reshape(-1, 1, rows, columns)
    coarse = F.interpolate(seen, scale_factor=float(third))
    fine = F.interpolate(seen, scale_factor=float(third * second))
    one = copied(embedded(net.patch_embed1, pixels), order)
    for block in net.blocks1:
        one = convolved(block, one, fine)
    two = embedded(net.patch_embed2, one)
    for block in net.blocks2:
        two = convolved(block, two, coarse)
    x = net.patch_embed4(embedded(net.patch_embed3, two).flatten(2).transpose(1, 2)) + net.pos_embed
    x = transformed(net.blocks3, taken(x, order.keep))
    for fusion, stage in zip(backbone.fusions, (one, two), strict=True):
        x = x + taken(fusion(stage).flatten(2).transpose(1, 2), order.keep)
    x = net.norm(x)
    return x[:, :0], x


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """LayerNorm over the channels of a map."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def embedded(layer: nn.Module, x: Tensor) -> Tensor:
    """A convolution whose kernel is its stride, norm, GELU."""
    return F.gelu(normed(layer.norm, layer.proj(x)))


def convolved(block: nn.Module, x: Tensor, seen: Tensor) -> Tensor:
    """A block of convolutions on whole maps."""
    x = x + block.conv2(block.attn(seen * block.conv1(normed(block.norm1, x))))
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(normed(block.norm2, x))))


def decoded(decoder: Decoder, prefix: Tensor, latent: Tensor, order: Order) -> Tensor:
    """Predictions of every token, in raster order."""
    first, x = decoder.embed(prefix), decoder.embed(latent)
    absent = decoder.mask_token.to(x.dtype).expand(len(x), order.mask.shape[1] - x.shape[1], -1)
    x = taken(torch.cat([x, absent], dim=1), order.restore) + decoder.positions
    x = decoder.norm(transformed(decoder.blocks, torch.cat([first, x], dim=1)))
    return decoder.predict(x)[:, first.shape[1] :]


__all__ = ["Prepared", "Reference"]
