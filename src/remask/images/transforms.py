"""One image to the size that the backbone sees: a random crop for training, the centre for evaluation.

Pixels keep their type and are resized by torch's antialiased bicubic, which for uint8 is Pillow's to within one level.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Int, Num
from torch import Generator, Tensor

from remask.errors import UserError
from remask.types import Size

CROP = 224 / 256
"""Share of the tighter side that a centre crop keeps."""

TRIES = 10
"""Draws before RandomResizedCrop falls back to the centre (Szegedy et al. 2015, as torchvision has it)."""


class Box(NamedTuple):
    """A crop, in pixels of its image."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


class Transform(Protocol):
    """A function that the loader applies to each image; every random number comes from the generator."""

    def __call__(self, image: Num[Tensor, "C H W"], generator: Generator) -> Num[Tensor, "C h w"]: ...


@dataclass(frozen=True)
class RandomCropFlip:
    """RandomResizedCrop and a horizontal flip with probability one half: the augmentation of MAE, DMJD and SimMIM.

    scale  share of the image's area that the crop covers, drawn uniformly
    ratio  width over height of the crop, drawn log-uniformly, in units of the output's own: at a size of 96x160 a
           ratio of 1 is a crop of 3:5, so that nothing is squeezed. On square outputs this is torchvision's rule.
    With a scale of (1, 1) the crop is always the same: the centre, as large as `ratio` lets it be.
    """

    size: Size
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        _check(self.size)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"crop scale {self.scale}: needs 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"crop ratio {self.ratio}: needs 0 < low <= high")

    def reduction(self, rows: int, columns: int, generator: Generator) -> int:
        """The factor 8, 4, 2 or 1 by which decoding may shrink an image of this size without enlarging this crop."""
        _, _, height, width = self._box(rows, columns, self._draw(generator))
        return next((by for by in (8, 4, 2) if height // by >= self.size[0] and width // by >= self.size[1]), 1)

    def place(self, rows: int, columns: int, generator: Generator) -> Box:
        """Where this draw's crop lies in an image of so many rows and columns, and whether it is mirrored."""
        draws = self._draw(generator)
        return Box(*self._box(rows, columns, draws), self.flip and draws[-1] < 0.5)

    def __call__(self, image: Num[Tensor, "C H W"], generator: Generator) -> Num[Tensor, "C h w"]:
        top, left, height, width, mirrored = self.place(image.shape[-2], image.shape[-1], generator)
        crop = resize(image[:, top : top + height, left : left + width], self.size)
        return mirror(crop) if mirrored else crop

    @staticmethod
    def _draw(generator: Generator) -> list[float]:
        # All numbers in one call: 5 times faster than one by one, and as many are drawn whatever the image's size.
        return torch.rand(2 * TRIES + 3, generator=generator, dtype=torch.float64).tolist()

    def _box(self, rows: int, columns: int, draws: list[float]) -> tuple[int, int, int, int]:
        """Top, left, height and width of the crop."""
        aspect = self.size[1] / self.size[0]
        low, high = math.log(self.ratio[0] * aspect), math.log(self.ratio[1] * aspect)
        # official: a crop of the whole area is tried too, and shifted by a pixel where rounding makes room for it
        for trial in range(TRIES if self.scale[0] < 1 else 0):
            area = rows * columns * (self.scale[0] + draws[2 * trial] * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + draws[2 * trial + 1] * (high - low))
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= columns and 0 < height <= rows:
                return int(draws[-3] * (rows - height + 1)), int(draws[-2] * (columns - width + 1)), height, width
        ratio = min(max(columns / rows, math.exp(low)), math.exp(high))
        height, width = min(rows, round(columns / ratio)), min(columns, round(rows * ratio))
        height, width = max(height, 1), max(width, 1)
        return (rows - height) // 2, (columns - width) // 2, height, width


@dataclass(frozen=True)
class SimpleCropFlip:
    """Nearly the whole image: resized to cover the output, padded by reflection, cut at a random place; then a flip.

    The conservative crop of PixMIM (2303.02416), which loses less of what an image shows than RandomResizedCrop.
    padding   pixels on each side (official: 4 at 224 px)
    """

    size: Size
    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        _check(self.size)
        if not 0 <= self.padding < min(self.size):
            raise UserError(f"padding of {self.padding} px: needs 0 or more, and less than the output's {self.size}")

    def __call__(self, image: Num[Tensor, "C H W"], generator: Generator) -> Num[Tensor, "C h w"]:
        down, right, along, mirrored = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        (height, width), image = self.size, _shortened(image, self.size, along)
        rows, columns = image.shape[-2:]
        # one side is met exactly, the other follows; rounded down as torchvision does
        if rows * width <= columns * height:
            tall, wide = height, max(columns * height // rows, width)
        else:
            tall, wide = max(rows * width // columns, height), width
        image = resize(image, (tall, wide))
        y = self._reflected(int(down * (tall + 2 * self.padding - height + 1)), height, tall)
        x = self._reflected(int(right * (wide + 2 * self.padding - width + 1)), width, wide)
        crop = image.view(torch.int16) if image.dtype == torch.uint16 else image  # which torch indexes
        crop = crop[:, y[:, None], x].view(image.dtype)
        return mirror(crop) if self.flip and mirrored < 0.5 else crop

    def _reflected(self, start: int, length: int, total: int) -> Int[Tensor, "length"]:
        """Pixels of a line of `total` that stand at `start` and behind, where the padded line begins at 0."""
        place = (torch.arange(length) + start - self.padding).abs()
        return total - 1 - (total - 1 - place).abs()


@dataclass(frozen=True)
class CentreCrop:
    """Resize so that the crop is `ratio` of the image's tighter side, then cut the centre: 256 then 224 as usual.

    An image of this size is returned unchanged: 32x32 sets are evaluated on their own pixels.
    """

    size: Size
    ratio: float = CROP

    def __post_init__(self) -> None:
        _check(self.size)
        if not 0 < self.ratio <= 1:
            raise UserError(f"centre crop ratio {self.ratio}: needs 0 < ratio <= 1")

    def __call__(self, image: Num[Tensor, "C H W"], generator: Generator | None = None) -> Num[Tensor, "C h w"]:
        if tuple(image.shape[-2:]) == self.size:
            return image
        height, width = self.size
        image = _shortened(image, self.size)
        rows, columns = image.shape[-2:]
        tall, wide = round(height / self.ratio), round(width / self.ratio)
        # the tighter side is met exactly, the other follows; rounded down as torchvision does
        if tall * columns >= wide * rows:
            wide = max(tall * columns // rows, width)
        else:
            tall = max(wide * rows // columns, height)
        image = resize(image, (tall, wide))
        top, left = round((tall - height) / 2), round((wide - width) / 2)
        return image[:, top : top + height, left : left + width]


def mirror(image: Num[Tensor, "*C H W"]) -> Num[Tensor, "*C H W"]:
    """The image with its columns in reverse order; uint16 as well, which torch 2.11 does not flip by itself."""
    if image.dtype == torch.uint16:
        return image.view(torch.int16).flip(-1).view(torch.uint16)
    return image.flip(-1)


def resize(image: Num[Tensor, "C H W"], size: Size) -> Num[Tensor, "C h w"]:
    """Antialiased bicubic in two passes, each rounded and clamped to uint8 as Pillow does it.

    Deeper images are resized in float32, uint16 rounded and clamped at the end.
    """
    rows, columns = image.shape[-2:]
    if (rows, columns) == tuple(size):
        return image
    if image.dtype == torch.uint16:
        return resize(image.float(), size).round_().clamp_(0, 65535).to(torch.uint16)
    batch = image[None]
    if rows_first(rows, columns, size) and columns != size[1]:
        batch = F.interpolate(batch, size=(size[0], columns), mode="bicubic", antialias=True)
    return F.interpolate(batch, size=size, mode="bicubic", antialias=True)[0]


def rows_first(rows: int, columns: int, size: Size) -> bool:
    """Whether Pillow 13 takes the vertical pass first: where it shrinks much more. torch takes it last.

    The order shows in the clamped overshoot beside sharp edges, by up to 10 levels.
    """
    return rows > size[0] and rows - size[0] > 2 * (columns - size[1])


def _shortened(image: Num[Tensor, "C H W"], size: Size, along: float = 0.5) -> Num[Tensor, "C h w"]:
    """A piece of a very long image, its middle or at a share `along` of its length: resizing all of a 20000x16 strip
    would take gigabytes for one crop."""
    rows, columns = image.shape[-2:]
    aspect = 4 * max(size) / min(size)
    tall, wide = min(rows, math.ceil(columns * aspect)), min(columns, math.ceil(rows * aspect))
    top, left = int((rows - tall) * along), int((columns - wide) * along)
    return image[:, top : top + tall, left : left + wide]


def _check(size: Size) -> None:
    if min(size) < 1:
        raise UserError(f"image size {size[0]}x{size[1]}: both sides need at least 1 pixel")


@dataclass(frozen=True)
class ProbeCrop:
    """The crop of MAE's probe: area and ratio as in RandomResizedCrop, drawn once and cut to the image, and a flip.

    ratio   width over height, in units of the output's own, as in `RandomCropFlip`
    """

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, image: Num[Tensor, "C H W"], generator: Generator) -> Num[Tensor, "C h w"]:
        rows, columns = image.shape[-2:]
        draws = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        area = rows * columns * (self.scale[0] + draws[0] * (self.scale[1] - self.scale[0]))
        low, high = (math.log(bound * self.size[1] / self.size[0]) for bound in self.ratio)
        ratio = math.exp(low + draws[1] * (high - low))
        width = min(max(round(math.sqrt(area * ratio)), 1), columns)
        height = min(max(round(math.sqrt(area / ratio)), 1), rows)
        top, left = int(draws[2] * (rows - height + 1)), int(draws[3] * (columns - width + 1))
        crop = resize(image[:, top : top + height, left : left + width], self.size)
        return mirror(crop) if draws[4] < 0.5 else crop
