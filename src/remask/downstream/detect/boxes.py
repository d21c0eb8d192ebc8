"""Pictures with boxes and masks as batches of one size, and the next usable picture in the place of a broken one.

What an epoch yields is a function of (seed, epoch, position) alone, as it is for the pictures of `images.loader`.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from jaxtyping import Int, Num
from torch import Generator, Tensor

from remask.downstream.detect.coco import CocoSource, Target
from remask.downstream.detect.placing import PAD, BoxTransform, Fit, ScaleJitter, around, fitting
from remask.errors import UserError
from remask.images.decoding import BadImage, Reduction
from remask.images.levels import Scaling
from remask.images.loading.batch_maker import ORDER, Made, Maker, Task
from remask.images.loading.image_cache import decoded
from remask.images.loading.loader import TooManyBad
from remask.images.loading.workers import map_batches
from remask.seeds import mix


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
        if batch_size < 1 or workers < 0:
            raise UserError(f"batch size {batch_size}, workers {workers}: need 1 or more, 0 or more")
        self.source, self._batch_size, self._seed, self._shuffle = source, batch_size, seed, shuffle
        keep = not shuffle if empty is None else empty
        self._numbers = [i for i in range(len(source)) if keep or source.instances(i)]
        if not self._numbers:
            raise UserError(f"no picture of {source.name} has an instance: there is nothing to train a detector on")
        self._workers, self._pin, self._max_bad, self._report = workers, pin, max_bad, report
        self.bad: dict[str, str] = {}
        """Pictures that could not be used, and why."""
        self.unusable: set[int] = set()
        """Their numbers in the source."""
        allowed = max(3, math.ceil(max_bad * len(self._numbers))) if max_bad else 0
        pictures, cut = _Boxed(source, self._numbers, channels, scaling), _Cut(transform, scaling)
        self._maker = Maker(pictures, cut, seed, skip=not shuffle, allowed=allowed)

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole = len(self._numbers) / self._batch_size
        return max(1, math.floor(whole)) if self._shuffle else math.ceil(whole)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[BoxBatch]:
        """The batches of one epoch from number `start` on. Raises TooManyBad."""
        tasks = self._tasks(epoch)[start:]
        for made in map_batches(self._maker, tasks, self._workers) if self._workers else self._by_thread(tasks):
            self._note(made.bad)
            batch = made.images
            if batch is not None:
                yield batch._replace(images=batch.images.pin_memory()) if self._pin else batch

    def _note(self, bad: dict[int, str]) -> None:
        for place, reason in bad.items():
            where = self.source.where(self._numbers[place])
            if where not in self.bad and self._report is not None:
                self._report(f"{where}: {reason}")
            self.bad[where] = reason
            self.unusable.add(self._numbers[place])
        if self._workers:
            self._maker.bad.update(bad)  # what one worker met, all know in the next epoch
        if self._maker.too_many(dict.fromkeys(self.unusable, "")):
            raise TooManyBad(self.bad, len(self._numbers), self._max_bad)

    def _tasks(self, epoch: int) -> list[Task]:
        n, size = len(self._numbers), self._batch_size
        total = len(self) * size if self._shuffle else n
        order = torch.cat([self._order(epoch, number) for number in range(math.ceil(total / n))])[:total].tolist()
        return [Task(epoch, range(at, min(at + size, total)), order[at : at + size]) for at in range(0, total, size)]

    def _order(self, epoch: int, number: int) -> Int[Tensor, "n"]:
        """Places among the pictures that are gone through."""
        if not self._shuffle:
            return torch.arange(len(self._numbers))
        generator = Generator().manual_seed(mix(self._seed, epoch, number, ORDER))
        return torch.randperm(len(self._numbers), generator=generator)

    def _by_thread(self, tasks: list[Task]) -> Iterator[Made]:
        """Two batches ahead."""
        pending: deque[Future[Made]] = deque()
        with ThreadPoolExecutor(1, "remask-boxes") as pool:
            try:
                for task in tasks:
                    pending.append(pool.submit(self._maker, task))
                    if len(pending) > 2:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()


class _Boxed:
    """Pictures with what is on them, by their place among `numbers`: what a `Maker` takes, with targets beside."""

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


class _Cut:
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


__all__ = ["PAD", "BoxBatch", "BoxLoader", "Fit", "ScaleJitter", "around", "fitting"]
