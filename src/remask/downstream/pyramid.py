"""Maps at several strides for dense tasks: ViTDet's simple feature pyramid (2203.16527, section 3) of a plain ViT's
last map, a feature pyramid network (1612.03144) of the maps that other backbones have.

Attention stays global in every block, where ViTDet has windows of 14×14 tokens in all but 4 of them: the pre-trained
network stays unchanged, but N tokens cost 2·N²·D a block instead of 2·196·N·D. For a ViT-B at 1024 pixels (N = 4096)
that is 657 against 461 billion multiplications, 1.4 times the network's work; at 512 pixels 1.1 times. ViTDet's
relative positions, which no pre-training has, are left out too.
"""

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from remask.backbones import Backbone
from remask.backbones.beit import BeitViT
from remask.backbones.vit import ViT
from remask.errors import UserError
from remask.types import Images, Size

STRIDES = (4, 8, 16, 32)
"""Image pixels per cell of each map of the simple pyramid."""


class SimplePyramid(nn.Module):
    """The last map of a plain ViT at strides 4 to 32: transposed convolutions, itself, max-pooling, each in parallel.

    width      channels of the input map
    channels   channels of every output map
    patch      pixels of a token's side, a power of two
    """

    strides = STRIDES

    def __init__(self, width: int, channels: int, patch: int) -> None:
        super().__init__()
        steps = math.log2(patch)
        if steps != int(steps):
            raise UserError(
                f"a feature pyramid needs patches of 4, 8, 16 or 32 pixels, a power of two, and these have {patch}; "
                "choose another backbone"
            )
        self.scales = nn.ModuleList(_scale(width, channels, int(steps - math.log2(stride))) for stride in STRIDES)

    def forward(self, maps: list[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B C _ _"]]:
        return [scale(maps[-1]) for scale in self.scales]


class TopDownPyramid(nn.Module):
    """Maps of a hierarchical backbone, each plus the upsampled coarser ones: torchvision's FPN, with LayerNorm.

    widths    channels of the input maps, finest first
    channels  channels of every output map
    strides   image pixels per cell of each map
    """

    def __init__(self, widths: list[int], channels: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.strides = strides
        # official (ConvMAE): synchronised batch norm; here LayerNorm, as in ViTDet, independent of the batch
        self.fpn = FeaturePyramidNetwork(widths, channels, norm_layer=LayerNorm2d)

    def forward(self, maps: list[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B C _ _"]]:
        named: dict[str, Tensor] = OrderedDict((str(i), x) for i, x in enumerate(maps))
        return list(self.fpn(named).values())


def create_pyramid(backbone: Backbone, channels: int, size: Size) -> SimplePyramid | TopDownPyramid:
    """The pyramid that fits the backbone, for images of `size` pixels (h, w); its input is `maps_of`.

    Raises UserError if the size or the patch does not fit, or the backbone has no maps.
    """
    backbone.grid(size)
    if _plain(backbone):
        if backbone.patch[0] != backbone.patch[1]:
            raise UserError(f"a feature pyramid needs square patches, and these have {backbone.patch} pixels")
        return SimplePyramid(backbone.width, channels, backbone.patch[0])
    maps = _probe_maps(backbone, size)
    strides = tuple(round(size[0] / x.shape[-2]) for x in maps)
    if len(maps) < 2 or any(b != 2 * a for a, b in pairwise(strides)):
        raise UserError(
            f"{type(backbone.network).__name__} has maps at strides {list(strides)}: a feature pyramid needs several, "
            "each twice the one before; choose another backbone"
        )
    return TopDownPyramid([x.shape[1] for x in maps], channels, strides)


def maps_of(backbone: Backbone, images: Images) -> list[Float[Tensor, "B _ _ _"]]:
    """Input maps of a pyramid, finest first: the last map of a plain ViT after its final norm, else the last four."""
    if not _plain(backbone):
        return list(_hierarchical(backbone).pyramid(images))[-4:]
    grid = backbone.grid((images.shape[-2], images.shape[-1]))
    tokens = backbone.encode(backbone.embed(images))[-1].tokens
    return [tokens.transpose(1, 2).unflatten(2, grid)]


def _plain(backbone: Backbone) -> bool:
    return isinstance(backbone, ViT | BeitViT)


def _hierarchical(backbone: Backbone) -> Any:
    if not hasattr(backbone, "pyramid"):
        raise UserError(f"{type(backbone.network).__name__} has no maps for dense tasks; choose another backbone")
    return backbone


def _probe_maps(backbone: Backbone, size: Size) -> list[Float[Tensor, "1 _ _ _"]]:
    """The maps of a zero image of `size`, in evaluation mode."""
    training, device = backbone.network.training, next(backbone.network.parameters()).device
    backbone.network.eval()
    try:
        with torch.no_grad():
            return maps_of(backbone, torch.zeros(1, backbone.channels, *size, device=device))
    finally:
        backbone.network.train(training)


def _scale(width: int, channels: int, doublings: int) -> nn.Sequential:
    """The map at 2^doublings times its resolution, by halving its width each time, then 1×1 and 3×3 convolutions."""
    layers: list[nn.Module] = []
    for i in range(doublings):
        layers += [LayerNorm2d(width), nn.GELU()] if i else []
        layers.append(nn.ConvTranspose2d(width, width := max(1, width // 2), 2, stride=2))
    if doublings < 0:
        layers.append(nn.MaxPool2d(2**-doublings, ceil_mode=True))
    return nn.Sequential(
        *layers,
        nn.Conv2d(width, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    )


__all__ = ["STRIDES", "SimplePyramid", "TopDownPyramid", "create_pyramid", "maps_of"]
