"""One batch from its task: the images, their crops, and the next usable image in the place of a broken one."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Num
from torch import Generator, Tensor

from remask.images.decoding import BadImage, Reduction
from remask.images.levels import Scaling
from remask.images.transforms import RandomCropFlip, Transform
from remask.seeds import mix


class Task(NamedTuple):
    """The order for one batch.

    positions   in the epoch, which decide the crops
    indices     numbers of the images in the source, one for each position
    """

    epoch: int
    positions: range
    indices: list[int]


class BuiltBatch(NamedTuple):
    """A batch as its `Cut` makes it; None where no image is usable.

    numbers   of its images in the source
    bad       images newly found unusable, {number: reason}
    beyond    images newly found with values beyond the range, {number: these values in words}
    """

    images: Any
    numbers: list[int]
    bad: dict[int, str]
    beyond: dict[int, str] = {}  # noqa: RUF012  # never written to


class IndexedImages(Protocol):
    """Images by number, on the host or on a device; those of a downstream task come with their masks or boxes.

    beyond   images with values outside the range of the run, {number: these values in words}
    """

    beyond: dict[int, str]

    def __len__(self) -> int: ...

    def ahead(self, numbers: Sequence[int]) -> None: ...

    def get(self, i: int, reduction: Reduction | None = None) -> Any: ...


class Cut(Protocol):
    """images[i] cropped with random seed seeds[i], as one batch: [B, C, h, w] for plain images."""

    def __call__(self, images: Sequence[Any], seeds: Sequence[int]) -> Any: ...


class OneByOne:
    """A transform applied to each image, the results stacked: by `scaling.batch` if given, for sets of more bits."""

    def __init__(self, transform: Transform, scaling: Scaling | None = None) -> None:
        self._transform, self._scaling = transform, scaling

    def __call__(self, images: Sequence[Tensor], seeds: Sequence[int]) -> Num[Tensor, "B C h w"]:
        generator = Generator()
        pairs = zip(images, seeds, strict=True)
        cut = [self._transform(image, generator.manual_seed(seed)) for image, seed in pairs]
        return self._scaling.batch(cut) if self._scaling else torch.stack(cut)


class BatchBuilder:
    """Makes batches, in this process or in a worker; `bad` holds the unusable images known so far, {number: reason}.

    skip      leave unusable images out; otherwise the next usable one, by number, takes the place
    allowed   number of unusable images that are tolerated
    crops     consecutive positions that are crops of one image
    reduced   the random crop, where JPEGs may be decoded at the smaller scale that it allows
    """

    def __init__(
        self,
        images: IndexedImages,
        cut: Cut,
        seed: int,
        *,
        skip: bool = False,
        allowed: int = 0,
        crops: int = 1,
        reduced: RandomCropFlip | None = None,
    ) -> None:
        self._images, self._cut, self._seed = images, cut, seed
        self._skip, self._allowed, self._crops, self._reduced = skip, allowed, crops, reduced
        self.bad: dict[int, str] = {}

    @property
    def beyond(self) -> dict[int, str]:
        """Images with values outside the range that this process has met."""
        return self._images.beyond

    def too_many(self, bad: dict[int, str]) -> bool:
        return len(bad) > self._allowed or len(bad) == len(self._images)

    def __call__(self, task: Task) -> BuiltBatch:
        known, beyond, group = len(self.bad), len(self._images.beyond), -1
        usable: tuple[Any, int] | None = None
        images, numbers, seeds = list[Any](), list[int](), list[int]()
        self._images.ahead([i for i in dict.fromkeys(task.indices) if i not in self.bad])
        for position, wanted in zip(task.positions, task.indices, strict=True):
            if position // self._crops != group:
                group = position // self._crops
                usable = self._usable(wanted, self._reduction(task.epoch, group))
            if usable is not None:
                images.append(usable[0])
                numbers.append(usable[1])
                seeds.append(self._crop_seed(task.epoch, position))
            elif self.too_many(self.bad):  # the epoch ends here, and the main process says why
                return BuiltBatch(None, [], self.bad)
        fresh = dict(list(self.bad.items())[known:])
        outside = dict(list(self._images.beyond.items())[beyond:])
        return BuiltBatch(self._cut(images, seeds) if images else None, numbers, fresh, outside)

    def _crop_seed(self, epoch: int, position: int) -> int:
        return mix(self._seed, epoch, position, CROP)

    def _reduction(self, epoch: int, group: int) -> Reduction | None:
        """The reduction that every crop of an image allows."""
        crop = self._reduced
        if crop is None:
            return None
        positions = range(group * self._crops, (group + 1) * self._crops)
        seeds = [self._crop_seed(epoch, position) for position in positions]
        return lambda rows, columns: min(crop.reduction(rows, columns, Generator().manual_seed(seed)) for seed in seeds)

    def _usable(self, wanted: int, reduction: Reduction | None) -> tuple[Any, int] | None:
        """(image, number) of the image wanted or the next usable one, cyclically, always the same; None without any."""
        for step in range(1 if self._skip else len(self._images)):
            i = (wanted + step) % len(self._images)
            if i in self.bad:
                continue
            try:
                return self._images.get(i, reduction), i
            except BadImage as bad:
                self.bad[i] = str(bad)
            if self.too_many(self.bad):
                break
        return None


ORDER, CROP = 1, 2
"""Which stream of random numbers a seed is for."""
