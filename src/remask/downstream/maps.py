"""Feature maps of any backbone at four strides, the input of heads for dense tasks.

Hierarchical networks, Swin and ConvViT have such maps (`pyramid`). A plain ViT has one grid: the outputs of four of its
blocks are rescaled by the neck with which BEiT (2106.08254), and MAE after it, feed UperNet.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from remask.backbones import Backbone
from remask.errors import UserError
from remask.types import Images, Size

Norm: TypeAlias = Literal["batch", "group"]


@runtime_checkable
class Pyramid(Protocol):
    """A backbone with feature maps at several strides."""

    def pyramid(self, images: Images) -> list[Float[Tensor, "B _ _ _"]]: ...


class Maps(nn.Module):
    """Up to four feature maps of a backbone, finest first (all stages of a pyramid with fewer), or a single one.

    layers     indices of the blocks read from a plain network: BEiT's [3, 5, 7, 11] of 12; () for a pyramid
    channels   number of channels of each map
    strides    image pixels per position of each map; not integers unless the patch is a power of two
    norm       of the neck: "batch", or "group" for batches of few images
    single     one map for a linear head: the final tokens of a plain network after its norm, on its own grid, or the
               last map but one of a pyramid
    The backbone is an argument of each call, so that a state dict contains it once. Its parameters on which no map
    depends are frozen in `__init__`: a final norm, parameters for pre-training.
    """

    def __init__(self, backbone: Backbone, norm: Norm = "batch", single: bool = False) -> None:
        super().__init__()
        self.single, self.plain = single, not isinstance(backbone, Pyramid)
        self.layers = () if not self.plain else (-1,) if single else chosen_blocks(backbone.depth)
        small = 2 * backbone.patch[0], 2 * backbone.patch[1]
        size = padded(backbone, small if self.plain else _built_for(backbone, small))
        maps = _probe_maps(self, backbone, size)
        self.channels: tuple[int, ...] = tuple(m.shape[1] for m in maps)
        self.strides: tuple[float, ...] = tuple(size[0] / m.shape[2] for m in maps)
        self.neck = nn.ModuleList()
        if self.plain and not single:
            halvings = round(math.log2(backbone.patch[0] / 4))
            self.neck.extend(rescaling(backbone.width, halvings - level, norm) for level in range(4))
            self.strides = tuple(backbone.patch[0] / 2 ** (halvings - level) for level in range(4))

    def forward(self, backbone: Backbone, images: Images) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of images of any size, padded at the right and bottom to a size that the backbone takes."""
        maps = self.read(backbone, pad_to_patch(backbone, images))
        return [level(m) for level, m in zip(self.neck, maps, strict=True)] if len(self.neck) else maps

    def read(self, backbone: Backbone, images: Images) -> list[Float[Tensor, "B _ _ _"]]:
        """The backbone's maps, before the neck, of images of a size that it takes."""
        if isinstance(backbone, Pyramid):
            maps = backbone.pyramid(images)[-4:]
            return maps[-2:][:1] if self.single else maps
        grid = backbone.grid((images.shape[-2], images.shape[-1]))
        outputs = backbone.encode(backbone.embed(images), layers=self.layers)
        return [outputs[layer].tokens.transpose(1, 2).unflatten(2, grid) for layer in self.layers]


def chosen_blocks(depth: int) -> tuple[int, ...]:
    """Indices of the four blocks whose outputs become maps: BEiT's [3, 5, 7, 11] of 12, [7, 11, 15, 23] of 24."""
    return tuple(max(0, round(depth * share / 12) - 1) for share in (4, 6, 8, 12))


def rescaling(width: int, doublings: int, norm: Norm) -> nn.Module:
    """A module that scales a map by 2^doublings: 2x2 transposed convolutions with norm and GELU between, or pooling.

    BEiT's neck for patches of 16 is doublings 2, 1, 0, -1; MAE's for patches of 8 is 1, 0, -1, -2.
    # official: pooling drops an odd row at the border; here it keeps the row, so that a grid of one row remains
    """
    if doublings < 1:
        return nn.MaxPool2d(2**-doublings, ceil_mode=True) if doublings else nn.Identity()
    layers: list[nn.Module] = []
    for number in range(doublings):
        layers += [normalisation(norm, width), nn.GELU()] if number else []
        layers.append(nn.ConvTranspose2d(width, width, 2, 2))
    return nn.Sequential(*layers)


def normalisation(norm: Norm, width: int) -> nn.Module:
    """BatchNorm, or GroupNorm with at most 32 groups of at least 16 channels, which is independent of the batch."""
    if norm == "batch":
        return nn.BatchNorm2d(width)
    return nn.GroupNorm(math.gcd(width, min(32, max(1, width // 16))), width)


def padded(backbone: Backbone, size: Size) -> Size:
    """The padded size (h, w) for images of `size`: multiples of the patch, or of the window if windows must tile.

    Raises UserError if the backbone takes no such size.
    """
    for times in range(1, 65):
        unit = backbone.patch[0] * times, backbone.patch[1] * times
        candidate = -(-size[0] // unit[0]) * unit[0], -(-size[1] // unit[1]) * unit[1]
        try:
            backbone.grid(candidate)
        except UserError:
            continue
        return candidate
    raise UserError(f"{type(backbone.network).__name__} takes no images of {size[0]}×{size[1]} px, nor slightly larger")


def pad_to_patch(backbone: Backbone, images: Images) -> UInt8[Tensor, "B C Y X"] | Float[Tensor, "B C Y X"]:
    """The images normalised and padded with 0 (the mean) at the right and bottom; unchanged if they need no padding."""
    height, width = images.shape[-2:]
    tall, wide = padded(backbone, (height, width))
    if (tall, wide) == (height, width):
        return images
    return F.pad(backbone.normalise(images), (0, wide - width, 0, tall - height))


def _built_for(backbone: Backbone, unknown: Size) -> Size:
    """Image size (h, w) for which a network was built, as some take no other; `unknown` if its arguments have none."""
    origin: tuple[str, dict[str, Any]] = getattr(backbone, "origin", None) or ("", {})
    height, width = origin[1].get("img_size") or unknown
    return int(height), int(width)


def _probe_maps(maps: Maps, backbone: Backbone, size: Size) -> Sequence[Tensor]:
    """The maps of a zero image of `size`. Freezes parameters on which no map depends."""
    module = cast(nn.Module, backbone)
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    device = next(backbone.network.parameters()).device
    with torch.enable_grad():
        outputs = maps.read(backbone, torch.zeros(1, backbone.channels, *size, device=device))
    named = [p for p in module.parameters() if p.requires_grad]
    total = torch.stack([m.sum() for m in outputs]).sum()
    for parameter, gradient in zip(named, torch.autograd.grad(total, named, allow_unused=True), strict=True):
        parameter.requires_grad_(gradient is not None)
    for layer, mode in modes.items():  # after backward, for checkpointed blocks run again in it and need the same mode
        layer.training = mode
    return outputs


__all__ = ["Maps", "Norm", "Pyramid", "chosen_blocks", "normalisation", "pad_to_patch", "padded", "rescaling"]
