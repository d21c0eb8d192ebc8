"""What the numbers in images mean: which value is black and which is white, and how they become a network's input.

8-bit images are 0..255. Deeper ones travel as they are, uint16 or float32, so that no level is lost, and one rule,
`Levels`, says for training, probes, embeddings and exports alike which value is 0 and which is 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Num
from torch import Tensor

FULL_RANGE = {torch.uint8: (0.0, 255.0), torch.uint16: (0.0, 65535.0)}
"""Black and white of integer types; floats are 0..1."""


@dataclass(frozen=True)
class Levels:
    """Values that are black and white in images; without them each type's own range, floats being 0..1.

    8-bit images are 0..255 under every rule whose numbers go beyond that.
    """

    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, rule: str | Sequence[float] | None) -> "Levels | None":
        """The levels of a `data.range` rule: "full" or two numbers; None for "byte" and None, which make all 8 bits."""
        if rule is None or rule == "byte":
            return None
        return cls() if isinstance(rule, str) else cls(float(rule[0]), float(rule[1]))

    @property
    def config(self) -> str | list[float]:
        """For JSON: "full" or two numbers."""
        return "full" if self.low is None or self.high is None else [self.low, self.high]

    def values(self, image: Tensor) -> Tensor:
        """The image; an 8-bit one as uint16 where low and high apply to it too: both in 0..255, other than (0, 255).

        Under `RAW` a 16-bit image becomes float32, because torch has few operations on uint16.
        """
        if self.low == -math.inf and image.dtype == torch.uint16:
            return image.float()
        if image.dtype != torch.uint8 or self.low is None or self.high is None:
            return image
        applies = self.low >= 0 and self.high <= 255 and (self.low, self.high) != FULL_RANGE[torch.uint8]
        return image.to(torch.uint16) if applies else image

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """The values (black, white) of images of this type."""
        if dtype == torch.uint8 or self.low is None or self.high is None:
            return FULL_RANGE.get(dtype, (0.0, 1.0))
        return self.low, self.high

    def unit(self, images: Tensor) -> Tensor:
        """Values as float32, black at 0 and white at 1."""
        low, high = self.bounds(images.dtype)
        return (images.float() - low) / (high - low)

    def affine(self, dtype: torch.dtype, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Shift and scale [C, 1, 1] by which values of a type are normalised: (value - shift) · scale."""
        (low, high), shape = self.bounds(dtype), (-1, 1, 1)
        span = high - low
        return torch.tensor(mean).view(shape) * span + low, 1 / (torch.tensor(std).view(shape) * span)

    def normalised(self, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Values [..., C, H, W] normalised by mean and std per channel, as a network takes them, float32."""
        shift, scale = self.affine(images.dtype, mean, std)
        return (images.float() - shift) * scale

    def beyond(self, image: Tensor) -> str | None:
        """Which values lie outside the range, in words; None where none does."""
        if image.dtype == torch.uint8:
            return None
        low, high = self.bounds(image.dtype)
        least, most = (float(value) for value in torch.aminmax(image.float()))
        if low <= least and most <= high:
            return None
        return f"values reach from {least:g} to {most:g}, beyond {low:g} to {high:g} of data.range"


FULL = Levels()


class Scaling(NamedTuple):
    """How the images of a run are read and normalised; mean and std per channel are of values in 0..1.

    deep   whether the set has images of more than 8 bits
    """

    levels: Levels
    mean: Sequence[float]
    std: Sequence[float]
    deep: bool = False

    def normalised(self, images: Tensor) -> Tensor:
        """Values [..., C, H, W] of any depth as a network takes them, float32."""
        return self.levels.normalised(images, self.mean, self.std)

    def ready(self, images: Tensor) -> Tensor:
        """A batch as networks and targets take it: uint8, or normalised floats; uint16 is normalised here."""
        return self.normalised(images) if images.dtype == torch.uint16 else images

    def shades(self, image: Tensor) -> Tensor:
        """An image in 0..255, black to white: floats where the set is deep, which keeps every level, else uint8."""
        if self.deep or image.dtype == torch.uint8:
            return self.levels.unit(image) * 255 if self.deep else image
        return (self.levels.unit(image) * 255).round().clamp(0, 255).to(torch.uint8)

    def of_shades(self, image: Tensor) -> Tensor:
        """An image in 0..255 as a network takes it: uint8 unchanged, floats normalised."""
        return Levels(0, 255).normalised(image, self.mean, self.std) if image.is_floating_point() else image

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """Images of one size, stacked: uint8 or uint16 if all have that type (a network scales it), else normalised."""
        if {image.dtype for image in images} in ({torch.uint8}, {torch.uint16}):
            return torch.stack(list(images))
        return torch.stack([self.normalised(image) for image in images])


def levels_of(config: Any) -> Levels | None:
    """The levels that a JSON file states, the full range where it states none; None for 8 bits."""
    return FULL if config is None else Levels.of(config)


def rule_of(levels: Levels | None) -> str | list[float]:
    """The rule that `levels_of` turns back into these levels: "full", two numbers, or "byte" for None."""
    return "byte" if levels is None else levels.config


def luma(image: Num[Tensor, "3 H W"]) -> Num[Tensor, "1 H W"]:
    """ITU-R 601-2 in 16-bit fixed point, as Pillow rounds it; of floats with the same weights."""
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int64)[:, None, None]
    if image.is_floating_point():
        return (image * (weights / 0x10000)).sum(0, keepdim=True)
    return ((image.long() * weights).sum(0, keepdim=True) + 0x8000 >> 16).to(image.dtype)


class Ready(Scaling):
    """The scaling of images that their transform has normalised already: `batch` stacks them unchanged."""

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(images))


RAW = Levels(-math.inf, math.inf)
"""Values as they are stored."""

__all__ = ["FULL", "RAW", "Levels", "Ready", "Scaling", "levels_of", "luma", "rule_of"]
