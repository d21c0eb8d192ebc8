"""Batches of images of one size, with boxes and masks; the next usable image replaces an unusable one.

`BatchLoader` determines the order, the worker processes, and the treatment of unusable images.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int, Num
from torch import Generator, Tensor

from remask.downstream.detect.coco import CocoSource, Target
from remask.downstream.detect.placing import PAD, BoxTransform, LargeScaleJitter, Letterbox, around, fitting
from remask.errors import UserError
from remask.images.decoding import BadImage, Reduction
from remask.images.levels import Scaling
from remask.images.loading.image_cache import decoded
from remask.images.loading.loader import BatchLoader
from remask.images.loading.workers import PATIENCE


class BoxBatch(NamedTuple):
    """Images of one size, their targets in pixels of these images, and their numbers in the source.

    A target also has "shown", rows and columns of the image without padding, which is at the top left.
    """

    images: Num[Tensor, "B C H W"]
    labels: list[Target]
    index: Int[Tensor, "B"]  # type: ignore[assignment]  # replaces the tuple's method


class BoxLoader:
    """Full batches of a COCO source, epoch by epoch, by `loader`; a source smaller than a batch is repeated to fill it.

    shuffle   a new order each epoch, for training; the next usable image replaces an unusable one. False: each usable
              image once, in the source's order; the last batch may be smaller
    empty     include images without an instance; None: only without shuffle (training omits them, like detectron2)
    workers   number of processes that decode; 0: a thread of this process
    max_bad   share of images that may be unusable before `epoch` raises TooManyBad; 3 always may, unless it is 0
    pin       use page-locked memory, for asynchronous copies to a GPU
    scaling   of images deeper than 8 bits; None: all become uint8
    share     as in `Loader`
    report    called once with a line for each unusable image
    patience  seconds to wait for a batch before MachineError is raised; 0: for ever
    Raises UserError if no image has an instance to train on.
    """

    patience: float = PATIENCE

    def __init__(
        self,
        source: CocoSource,
        transform: BoxTransform,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        empty: bool | None = None,
        workers: int = 0,
        channels: int = 3,
        max_bad: float = 0.01,
        pin: bool = False,
        scaling: Scaling | None = None,
        share: Callable[[int], slice] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.source, self._pin = source, pin
        keep = not shuffle if empty is None else empty
        self._numbers = [i for i in range(len(source)) if keep or source.instances(i)]
        if not self._numbers:
            raise UserError(f"no picture of {source.name} has an instance: there is nothing to train a detector on")
        self.loader = BatchLoader(
            _Boxed(source, self._numbers, channels, scaling), _Placed(transform, scaling),
            lambda place: source.where(self._numbers[place]), batch_size, seed=seed, shuffle=shuffle,
            drop_last=shuffle, workers=workers, max_bad=max_bad, skip=not shuffle, share=share, report=report,
        )  # fmt: skip

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self.loader)

    @property
    def bad(self) -> dict[str, str]:
        """Address → reason of unusable images."""
        return self.loader.bad

    @property
    def unusable(self) -> set[int]:
        """Numbers of unusable images in the source."""
        return {self._numbers[place] for place in self.loader.unusable}

    def epoch(self, epoch: int, start: int = 0) -> Iterator[BoxBatch]:
        """Yields the batches of one epoch from number `start` on. Raises TooManyBad."""
        self.loader.patience = self.patience
        for built in self.loader.batches(epoch, start):
            batch: BoxBatch = built.images
            yield batch._replace(images=batch.images.pin_memory()) if self._pin else batch


class _Boxed:
    """Decoded images with targets by index into `numbers`: the images of a `BatchLoader`."""

    def __init__(
        self, source: CocoSource, numbers: Sequence[int], channels: int, scaling: Scaling | None = None
    ) -> None:
        self._source, self._numbers, self._channels, self._scaling = source, numbers, channels, scaling
        self.beyond = dict[int, str]()

    def __len__(self) -> int:
        return len(self._numbers)

    def ahead(self, numbers: Sequence[int]) -> None:
        """Does nothing: images need no preparation."""

    def get(self, place: int, reduction: Reduction | None = None) -> tuple[Num[Tensor, "C H W"], Target, int]:
        """(decoded image, target, number in the source). Raises BadImage."""
        number = self._numbers[place]
        try:
            data, target = self._source.read(number)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from None
        image, size = decoded(data, self._channels, self._scaling), target["size"]
        if tuple(image.shape[-2:]) != size:
            raise BadImage(f"{image.shape[-1]}x{image.shape[-2]} pixels, where the annotations say {size[1]}x{size[0]}")
        return image, target, number


class _Placed:
    """The `BoxBatch` of images, each transformed with its own seed."""

    def __init__(self, transform: BoxTransform, scaling: Scaling | None = None) -> None:
        self._transform, self._scaling = transform, scaling

    def __call__(self, images: Sequence[tuple[Tensor, Target, int]], seeds: Sequence[int]) -> BoxBatch:
        pairs = zip(images, seeds, strict=True)
        placed = [self._transform(item[0], item[1], Generator().manual_seed(seed)) for item, seed in pairs]
        numbers = torch.tensor([number for *_, number in images])
        stacked = torch.stack([image for image, _ in placed])
        ready = self._scaling.of_shades(stacked) if self._scaling else stacked
        return BoxBatch(ready, [target for _, target in placed], numbers)


__all__ = ["PAD", "BoxBatch", "BoxLoader", "LargeScaleJitter", "Letterbox", "around", "fitting"]
