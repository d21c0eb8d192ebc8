"""Pictures with boxes and masks as batches of one size, and the next usable picture in the place of a broken one.

`BatchLoader` says in which order, by which processes, and what becomes of pictures that cannot be used.
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


class BoxBatch(NamedTuple):
    """Pictures of one size, what is on each in its pixels, and their numbers in the source.

    A label also says "shown", rows and columns of the part that is picture and no padding; it starts at the top left.
    """

    images: Num[Tensor, "B C H W"]
    labels: list[Target]
    index: Int[Tensor, "B"]  # type: ignore[assignment]  # the tuple method of this name is not missed


class BoxLoader:
    """Batches of a COCO source, epoch by epoch, in full batches; a small source is gone through again to fill one.

    shuffle   another order each epoch, for training, and the next usable picture in the place of one that is not.
              Without it every usable picture once, in the source's order; the last batch may be short
    empty     pictures without an instance too; training leaves them out (as detectron2 does) unless told otherwise
    workers   processes that decode; 0: a thread of this process
    max_bad   share of pictures that may be unusable before `epoch` raises TooManyBad; up to 3 are, unless it is 0
    pin       page-locked memory, for copies to a GPU that do not wait
    scaling   how pictures deeper than 8 bits are read and normalised; None: all become uint8
    report    gets a line for each unusable picture, once
    Raises UserError if there is nothing to train on.
    """

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
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.source, self._pin = source, pin
        keep = not shuffle if empty is None else empty
        self._numbers = [i for i in range(len(source)) if keep or source.instances(i)]
        if not self._numbers:
            raise UserError(f"no picture of {source.name} has an instance: there is nothing to train a detector on")
        self._loader = BatchLoader(
            _Boxed(source, self._numbers, channels, scaling), _Placed(transform, scaling),
            lambda place: source.where(self._numbers[place]), batch_size, seed=seed, shuffle=shuffle,
            drop_last=shuffle, workers=workers, max_bad=max_bad, skip=not shuffle, report=report,
        )  # fmt: skip

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._loader)

    @property
    def bad(self) -> dict[str, str]:
        """Pictures that could not be used, and why."""
        return self._loader.bad

    @property
    def unusable(self) -> set[int]:
        """Their numbers in the source."""
        return {self._numbers[place] for place in self._loader.unusable}

    def epoch(self, epoch: int, start: int = 0) -> Iterator[BoxBatch]:
        """The batches of one epoch from number `start` on. Raises TooManyBad."""
        for built in self._loader.batches(epoch, start):
            batch: BoxBatch = built.images
            yield batch._replace(images=batch.images.pin_memory()) if self._pin else batch


class _Boxed:
    """Pictures with what is on them, by their place among `numbers`, as a `BatchLoader` takes them."""

    def __init__(
        self, source: CocoSource, numbers: Sequence[int], channels: int, scaling: Scaling | None = None
    ) -> None:
        self._source, self._numbers, self._channels, self._scaling = source, numbers, channels, scaling
        self.beyond = dict[int, str]()

    def __len__(self) -> int:
        return len(self._numbers)

    def ahead(self, numbers: Sequence[int]) -> None:
        """Nothing to prepare."""

    def get(self, place: int, reduction: Reduction | None = None) -> tuple[Num[Tensor, "C H W"], Target, int]:
        """A decoded picture, its target and its number. Raises BadImage."""
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
    """The batch of some pictures, each placed by its own seed."""

    def __init__(self, transform: BoxTransform, scaling: Scaling | None = None) -> None:
        self._transform, self._scaling = transform, scaling

    def __call__(self, images: Sequence[tuple[Tensor, Target, int]], seeds: Sequence[int]) -> BoxBatch:
        pairs = zip(images, seeds, strict=True)
        placed = [self._transform(one[0], one[1], Generator().manual_seed(seed)) for one, seed in pairs]
        numbers = torch.tensor([number for *_, number in images])
        stacked = torch.stack([image for image, _ in placed])
        ready = self._scaling.of_shades(stacked) if self._scaling else stacked
        return BoxBatch(ready, [target for _, target in placed], numbers)


__all__ = ["PAD", "BoxBatch", "BoxLoader", "LargeScaleJitter", "Letterbox", "around", "fitting"]
