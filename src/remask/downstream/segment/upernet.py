"""Heads that turn maps into class scores: UperNet (1807.10221) as MAE, BEiT and ConvMAE use it, and a linear one.

Why not segmentation-models-pytorch: its decoder requires a first map at the size of the image, and lacks the 3x3
convolutions of the levels and the auxiliary head of the published results (decoders/upernet/decoder.py). It would also
be a dependency for a hundred lines.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from remask.downstream.maps import Norm, normalisation
from remask.types import Size

POOLS = (1, 2, 3, 6)
DROPOUT = 0.1

FeatureMaps: TypeAlias = Sequence[Float[Tensor, "B _ _ _"]]


class UperNet(nn.Module):
    """Pyramid pooling of the coarsest map, a feature pyramid over all, their fusion at the finest (section 3.1).

    channels   of each map, finest first
    width      channels of every level: 512 in the paper, the width of the ViT in BEiT and MAE
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int = 512, norm: Norm = "batch") -> None:
        super().__init__()
        *fine, coarse = channels
        self.pools = nn.ModuleList(_conv(coarse, width, 1, norm) for _ in POOLS)
        self.bottleneck = _conv(coarse + len(POOLS) * width, width, 3, norm)
        self.laterals = nn.ModuleList(_conv(each, width, 1, norm) for each in fine)
        self.levels = nn.ModuleList(_conv(width, width, 3, norm) for _ in fine)
        self.fusion = _conv(len(channels) * width, width, 3, norm)
        self.classify = _classifier(width, classes)

    def forward(self, maps: FeatureMaps) -> Float[Tensor, "B classes h w"]:
        """Scores at the size of the finest map."""
        *fine, coarse = maps
        tops = [self._pooled(coarse)]
        for lateral, next_map in zip(reversed(self.laterals), reversed(fine), strict=True):
            tops.append(lateral(next_map) + scaled(tops[-1], next_map.shape[-2:]))
        context, *rest = tops  # the pooled map has no level convolution
        levels = [level(x) for level, x in zip(self.levels, reversed(rest), strict=True)]
        size = maps[0].shape[-2:]
        return self.classify(self.fusion(torch.cat([scaled(x, size) for x in (*levels, context)], dim=1)))

    def _pooled(self, coarse: Float[Tensor, "B D h w"]) -> Float[Tensor, "B width h w"]:
        """Pyramid pooling (PSPNet, 1612.01105): averages over 1, 2², 3² and 6² bins, concatenated with the map."""
        size = coarse.shape[-2:]
        pooled = [
            scaled(conv(F.adaptive_avg_pool2d(coarse, pool)), size)
            for conv, pool in zip(self.pools, POOLS, strict=True)
        ]
        return self.bottleneck(torch.cat([coarse, *pooled], dim=1))


class FcnHead(nn.Module):
    """One 3x3 convolution and a classifier on one map: the auxiliary head (FCN, 1411.4038) of UperNet's recipes."""

    def __init__(self, channels: int, classes: int, width: int = 256, norm: Norm = "batch") -> None:
        super().__init__()
        self.conv, self.classify = _conv(channels, width, 3, norm), _classifier(width, classes)

    def forward(self, features: Float[Tensor, "B D h w"]) -> Float[Tensor, "B classes h w"]:
        return self.classify(self.conv(features))


class LinearHead(nn.Module):
    """Norm and a linear classifier of each position, a fast evaluation (DINOv2, 2304.07193, section 7.4)."""

    def __init__(self, channels: int, classes: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.norm, self.classify = normalisation(norm, channels), nn.Conv2d(channels, classes, 1)
        _initialise(self.classify)

    def forward(self, features: Float[Tensor, "B D h w"]) -> Float[Tensor, "B classes h w"]:
        return self.classify(self.norm(features))


def scaled(x: Float[Tensor, "B D h w"], size: Size | torch.Size) -> Float[Tensor, "B D H W"]:
    """`x` resized to `size` (h, w), bilinear, corners not aligned."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _conv(inputs: int, width: int, kernel: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, normalisation(norm, width), nn.ReLU(inplace=True))


def _classifier(width: int, classes: int) -> nn.Sequential:
    conv = nn.Conv2d(width, classes, 1)
    _initialise(conv)
    return nn.Sequential(nn.Dropout2d(DROPOUT), conv)


def _initialise(conv: nn.Conv2d) -> None:
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


__all__ = ["FcnHead", "LinearHead", "UperNet", "scaled"]
