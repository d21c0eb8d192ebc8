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
        """What `data.range` says: "full", two numbers, or "byte" and None for images that become 8 bits (None)."""
        if rule is None or rule == "byte":
            return None
        return cls() if isinstance(rule, str) else cls(float(rule[0]), float(rule[1]))

    @property
    def config(self) -> str | list[float]:
        """For JSON: "full" or two numbers."""
        return "full" if self.low is None or self.high is None else [self.low, self.high]

    def values(self, image: Tensor) -> Tensor:
        """An 8-bit image as uint16 where the numbers are meant for 8 bits too: they lie in 0..255 and are not both.

        Values as they are stored (`RAW`) are floats where 8 bits do not hold them: torch computes little with uint16.
        """
        if self.low == -math.inf and image.dtype == torch.uint16:
            return image.float()
        if image.dtype != torch.uint8 or self.low is None or self.high is None:
            return image
        meant = self.low >= 0 and self.high <= 255 and (self.low, self.high) != FULL_RANGE[torch.uint8]
        return image.to(torch.uint16) if meant else image

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """Black and white among values of a type."""
        if dtype == torch.uint8 or self.low is None or self.high is None:
            return FULL_RANGE.get(dtype, (0.0, 1.0))
        return self.low, self.high

    def unit(self, images: Tensor) -> Tensor:
        """Values as float32 in units in which black is 0 and white is 1."""
        low, high = self.bounds(images.dtype)
        return (images.float() - low) / (high - low)

    def affine(self, dtype: torch.dtype, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Shift and scale [C, 1, 1] by which values of a type are normalised: (value - shift) · scale."""
        (low, high), one = self.bounds(dtype), (-1, 1, 1)
        span = high - low
        return torch.tensor(mean).view(one) * span + low, 1 / (torch.tensor(std).view(one) * span)

    def normalised(self, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Values [..., C, H, W] as a network takes them: of deviation 1 round 0, in float32."""
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

    deep   whether 8 bits do not hold the images of the set
    """

    levels: Levels
    mean: Sequence[float]
    std: Sequence[float]
    deep: bool = False

    def normalised(self, images: Tensor) -> Tensor:
        """Values [..., C, H, W] of any depth as a network takes them, float32."""
        return self.levels.normalised(images, self.mean, self.std)

    def ready(self, images: Tensor) -> Tensor:
        """A batch as every network and target takes it: uint8, or floats that are normalised."""
        return self.normalised(images) if images.dtype == torch.uint16 else images

    def shades(self, image: Tensor) -> Tensor:
        """An image in 0..255, black to white: floats where the set is deep, which keeps every level, else uint8."""
        if self.deep or image.dtype == torch.uint8:
            return self.levels.unit(image) * 255 if self.deep else image
        return (self.levels.unit(image) * 255).round().clamp(0, 255).to(torch.uint8)

    def of_shades(self, image: Tensor) -> Tensor:
        """What a network takes for an image in 0..255: uint8 as it is, floats normalised."""
        return Levels(0, 255).normalised(image, self.mean, self.std) if image.is_floating_point() else image

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """Images of one size together: uint8 or uint16 where all are, which a network scales; else normalised."""
        if {image.dtype for image in images} in ({torch.uint8}, {torch.uint16}):
            return torch.stack(list(images))
        return torch.stack([self.normalised(image) for image in images])


def levels_of(config: Any) -> Levels | None:
    """The levels that a JSON file states, the full range where it states none; None for 8 bits."""
    return FULL if config is None else Levels.of(config)


def rule_of(levels: Levels | None) -> str | list[float]:
    """What `levels_of` reads."""
    return "byte" if levels is None else levels.config


def luma(image: Num[Tensor, "3 H W"]) -> Num[Tensor, "1 H W"]:
    """ITU-R 601-2 in 16-bit fixed point, as Pillow rounds it; of floats with the same weights."""
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int64)[:, None, None]
    if image.is_floating_point():
        return (image * (weights / 0x10000)).sum(0, keepdim=True)
    return ((image.long() * weights).sum(0, keepdim=True) + 0x8000 >> 16).to(image.dtype)


class Ready(Scaling):
    """Of batches whose images are made ready one by one: they are read with the values that they have, and stacked."""

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(images))


RAW = Levels(-math.inf, math.inf)
"""Values as they are stored."""

__all__ = ["FULL", "RAW", "Levels", "Ready", "Scaling", "levels_of", "luma", "rule_of"]
