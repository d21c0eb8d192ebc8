"""Batches of images and masks with the same crop and scale; they depend on (seed, epoch, position) alone.

Each mask travels through the `Loader` as the last channel of its image, which leaves order, resuming, workers and
unusable pairs to the `Loader`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, Num, UInt8
from torch import Generator, Tensor

from remask.downstream.segment.label_map import IGNORE
from remask.downstream.segment.mask_source import MaskSource
from remask.downstream.segment.photometric import COLOURS, distorted
from remask.errors import UserError
from remask.images.decoding import BadImage
from remask.images.levels import RAW, Ready, Scaling
from remask.images.loading.image_cache import decoded
from remask.images.loading.loader import Loader
from remask.images.loading.workers import PATIENCE
from remask.images.transforms import mirror, resize
from remask.training.distributed import ALONE, World
from remask.training.gathering import unusable_of_all
from remask.types import Size

TRIES = 10
"""Maximum number of crops drawn until no single class dominates one."""
MEAN = (124, 116, 104)
"""Pixel values of padding: ImageNet's mean, which is 0 after its normalisation."""

Pair: TypeAlias = tuple[Num[Tensor, "C y x"], UInt8[Tensor, "y x"]]


class PairBatch(NamedTuple):
    """Images, their masks (255: no class), and their numbers in the source."""

    images: Num[Tensor, "B C H W"]
    labels: UInt8[Tensor, "B H W"]
    index: Int[Tensor, "B"]  # type: ignore[assignment]  # replaces the tuple's method


class PairTransform(Protocol):
    """A transform of a pair of image and mask; its random numbers come from the generator."""

    def __call__(self, image: Num[Tensor, "C H W"], mask: UInt8[Tensor, "H W"], generator: Generator) -> Pair: ...


@dataclass(frozen=True)
class Identity:
    """Returns the pair unchanged, for evaluation."""

    def __call__(self, image: Num[Tensor, "C H W"], mask: UInt8[Tensor, "H W"], generator: Generator) -> Pair:
        return image, mask


@dataclass(frozen=True)
class ScaleCropFlip:
    """The augmentation with which MAE, BEiT and ConvMAE train UperNet: scale, crop, flip, colours, padding.

    size           pixels (h, w) of the crop; smaller images are padded at the right and bottom
    scale          range of the uniform scale, relative to an image that just covers the crop (`covering`)
    cat_max_ratio  a crop in which one class has more of the labelled pixels is redrawn, at most TRIES in all; 1: never
    fill           pixel value of padding, one per channel; the mask is 255 there
    # official: the whole image is scaled, then cropped; here the crop comes first, which differs only at its border
    """

    size: Size
    scale: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    flip: bool = True
    photometric: bool = True
    fill: tuple[int, ...] = MEAN

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise UserError(f"crop size {self.size[0]}x{self.size[1]}: both sides need at least 1 pixel")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"scale {self.scale}: needs 0 < low <= high")
        if not 0 < self.cat_max_ratio <= 1:
            raise UserError(f"cat_max_ratio {self.cat_max_ratio:g}: needs 0 < ratio <= 1")

    def __call__(self, image: Num[Tensor, "C H W"], mask: UInt8[Tensor, "H W"], generator: Generator) -> Pair:
        # one call, and always the same number of random numbers: see RandomCropFlip
        draws = torch.rand(2 + 2 * TRIES + COLOURS, generator=generator, dtype=torch.float64).tolist()
        low, high = self.scale
        rows, columns = mask.shape
        times = covering((rows, columns), self.size) * (low + draws[0] * (high - low))
        (height, tall), (width, wide) = (
            _extent(side, crop, times) for side, crop in zip((rows, columns), self.size, strict=True)
        )
        top, left = self._corner(mask, (height, width), draws[2 : 2 + 2 * TRIES])
        box = slice(top, top + height), slice(left, left + width)
        image, mask = resize(image[:, *box], (tall, wide)), nearest(mask[box], (tall, wide))
        if self.flip and draws[1] < 0.5:
            image, mask = mirror(image), mask.flip(-1)
        if self.photometric:
            image = distorted(image, draws[-COLOURS:])
        return self._padded(image, mask)

    def _corner(self, mask: UInt8[Tensor, "H W"], box: Size, draws: list[float]) -> tuple[int, int]:
        """Top and left of the first drawn box that satisfies cat_max_ratio, or else of the last one."""
        (rows, columns), (height, width) = mask.shape, box
        top = left = 0
        for down, right in zip(draws[::2], draws[1::2], strict=True):
            top, left = int(down * (rows - height + 1)), int(right * (columns - width + 1))
            if self.cat_max_ratio == 1:
                break
            counts = torch.bincount(mask[top : top + height, left : left + width].flatten(), minlength=256)[:IGNORE]
            if counts.count_nonzero() > 1 and int(counts.max()) < self.cat_max_ratio * int(counts.sum()):
                break
        return top, left

    def _padded(self, image: Num[Tensor, "C h w"], mask: UInt8[Tensor, "h w"]) -> Pair:
        height, width = mask.shape
        if (height, width) == tuple(self.size):
            return image.contiguous(), mask.contiguous()
        channels = image.shape[0]
        fill = self.fill if len(self.fill) == channels else (round(sum(self.fill) / len(self.fill)),) * channels
        canvas = torch.tensor(fill, dtype=image.dtype).view(-1, 1, 1).repeat(1, *self.size)
        labels = torch.full(self.size, IGNORE, dtype=torch.uint8)
        canvas[:, :height, :width], labels[:height, :width] = image, mask
        return canvas, labels


def covering(image: Size, crop: Size) -> float:
    """Scale factor at which an image just covers a crop; its longer side is limited to 4 times the crop's.

    For a crop of 512x512 the shorter side becomes 512 and the longer one at most 2048, as usual for ADE20K.
    """
    cover = max(crop[0] / image[0], crop[1] / image[1])
    return min(cover, 4 * max(crop) / max(image))


def nearest(mask: UInt8[Tensor, "H W"], size: Size) -> UInt8[Tensor, "h w"]:
    """The mask resized by nearest neighbour (pixel centres)."""
    if tuple(mask.shape) == tuple(size):
        return mask
    return F.interpolate(mask[None, None], size=size, mode="nearest-exact")[0, 0]


def _extent(side: int, crop: int, times: float) -> tuple[int, int]:
    """Along one axis: number of image pixels that a crop covers, and their number after scaling by `times`."""
    covered = max(1, round(crop / times))
    return (covered, crop) if covered <= side else (side, max(1, min(crop, round(side * times))))


class PairLoader:
    """Batches of pairs, epoch by epoch, by `loader`. Arguments and TooManyBad as in `Loader`.

    An unusable pair is replaced by the next one with drop_last, and left out without. The transform must return pairs
    of one size.
    """

    patience: float = PATIENCE

    def __init__(
        self,
        source: MaskSource,
        transform: PairTransform,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        workers: int = 0,
        channels: int = 3,
        max_bad: float = 0.01,
        pin: bool = False,
        scaling: Scaling | None = None,
        share: Callable[[int], slice] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.source = source
        self.loader = Loader(
            _WithMask(source.name, source, channels, scaling), _SplitMask(transform, scaling), batch_size, seed=seed,
            shuffle=shuffle, drop_last=drop_last, workers=workers, channels=channels + 1, max_bad=max_bad,
            skip=not drop_last,
            pin=pin, cache_mb=0, scaling=scaling and Ready(RAW, (), ()), share=share, report=report,
        )  # fmt: skip

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self.loader)

    @property
    def bad(self) -> dict[str, str]:
        """Address → reason of unusable pairs."""
        return self.loader.bad

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PairBatch]:
        """Yields the batches of one epoch from number `start` on. Raises TooManyBad."""
        self.loader.patience = self.patience
        for batch in self.loader.epoch(epoch, start):
            yield PairBatch(batch.images[:, :-1], batch.images[:, -1].to(torch.uint8), batch.index)


def full_pairs(
    source: MaskSource,
    batch_size: int = 1,
    *,
    workers: int = 0,
    channels: int = 3,
    max_bad: float = 0.01,
    scaling: Scaling | None = None,
    world: World = ALONE,
    report: Callable[[str], None] | None = None,
) -> Iterator[PairBatch]:
    """Yields each usable pair once, uncropped and in the source's order; a batch holds images of one size.

    world   of processes that read the source together, each its share
    """
    loader = PairLoader(
        source, Identity(), world.size, shuffle=False, drop_last=False, workers=workers, channels=channels,
        max_bad=max_bad, scaling=scaling, share=world.share, report=report,
    )  # fmt: skip
    pending: list[PairBatch] = []
    for pair in loader.epoch(0):
        if pending and (len(pending) == batch_size or pair.images.shape != pending[0].images.shape):
            yield _concatenated(pending)
            pending = []
        pending.append(pair)
    if pending:
        yield _concatenated(pending)
    if not world.alone:
        unusable_of_all(loader.loader)


def _concatenated(batches: list[PairBatch]) -> PairBatch:
    return PairBatch(*(torch.cat(columns) for columns in zip(*batches, strict=True)))


@dataclass
class _WithMask:
    """A source of images with the mask as the last channel."""

    name: str
    source: MaskSource
    channels: int
    scaling: Scaling | None = None
    labels: list[int] | None = None
    classes: list[str] | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int) -> np.ndarray:
        data, mask = self.source.read(i)
        image = decoded(data, self.channels, self.scaling).permute(1, 2, 0).numpy()
        if image.shape[:2] != mask.shape:
            sizes = [f"{width}x{height}" for height, width in (image.shape[:2], mask.shape)]
            raise BadImage(f"its mask is of another size: {sizes[1]} and not {sizes[0]}")
        return np.concatenate([image, mask[..., None]], axis=2)

    def where(self, i: int) -> str:
        return self.source.where(i)


@dataclass(frozen=True)
class _SplitMask:
    """A transform of pairs, applied to images whose last channel is the mask."""

    transform: PairTransform
    scaling: Scaling | None = None

    def __call__(self, image: Num[Tensor, "C H W"], generator: Generator) -> Num[Tensor, "C h w"]:
        pixels, mask = self.transform(image[:-1], image[-1].to(torch.uint8), generator)
        ready = self.scaling.of_shades(pixels) if self.scaling else pixels
        return torch.cat([ready, mask[None].to(ready.dtype)])


__all__ = [
    "IGNORE",
    "Identity",
    "PairBatch",
    "PairLoader",
    "PairTransform",
    "ScaleCropFlip",
    "covering",
    "full_pairs",
]
