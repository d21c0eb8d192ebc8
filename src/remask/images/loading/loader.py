"""Batches of uint8 images in an order and with crops that depend on (seed, epoch, position) alone.

An epoch that starts at batch k is therefore, bit for bit, the rest of the whole epoch, with any number of workers, so
that a run can be resumed in the middle of one.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Int, Num
from torch import Generator, Tensor

from remask.errors import UserError
from remask.images.levels import Scaling
from remask.images.loading.batch_builder import ORDER, BatchBuilder, BuiltBatch, Cut, IndexedImages, OneByOne, Task
from remask.images.loading.device_crops import CachedOnDevice, CropOnDevice, DecodedOnDevice, fits
from remask.images.loading.image_cache import KEPT_MB, ImageCache, Keep
from remask.images.loading.memory import half_of_memory_mb
from remask.images.loading.reading_thread import in_thread
from remask.images.loading.workers import PATIENCE, map_batches
from remask.images.sources.opening import Source
from remask.images.transforms import RandomCropFlip, Transform
from remask.seeds import mix


class Batch(NamedTuple):
    """Images with their class numbers, if the source has any, and their numbers in the source.

    uint8; those of a deeper source are uint16, which the network scales, or floats that are normalised already.
    """

    images: Num[Tensor, "B C H W"]
    labels: Int[Tensor, "B"] | None
    index: Int[Tensor, "B"]  # type: ignore[assignment]  # hides tuple.index, which is not used


class TooManyBad(UserError):  # noqa: N818
    """More images are unusable than `max_bad` allows. `bad` says which and why: {where: reason}."""

    def __init__(self, bad: dict[str, str], total: int, max_bad: float) -> None:
        first = "; ".join(f"{where}: {reason}" for where, reason in list(bad.items())[:3])
        super().__init__(
            f"{len(bad)} of {total} images cannot be used, more than --max-bad {max_bad:g} allows ({first}): "
            "repair or remove those that bad_images.txt lists, or raise --max-bad"
        )
        self.bad = bad


class BatchLoader:
    """Batches of numbered images, epoch by epoch: their order, the processes, and the handling of unusable ones.

    images   the images by number; `Loader` has those of a source
    cut      (images, seeds) -> one batch of them, of any type
    where    number of an image -> its address for a person
    The other arguments are those of `Loader`.
    patience   seconds to wait for a batch before MachineError is raised; 0: for ever
    """

    patience: float = PATIENCE

    def __init__(
        self,
        images: IndexedImages,
        cut: Cut,
        where: Callable[[int], str],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        workers: int = 0,
        max_bad: float = 0.01,
        skip: bool = False,
        pin: bool = False,
        share: Callable[[int], slice] | None = None,
        crops: int = 1,
        reduced: RandomCropFlip | None = None,
        report: Callable[[str], None] | None = None,
        remark: Callable[[str], None] | None = None,
    ) -> None:
        _check(batch_size, workers, max_bad, crops, drop_last)
        self._total, self._where, self._crops = len(images), where, crops
        self.bad, self._noted, self.beyond = dict[str, str](), dict[int, str](), dict[int, str]()
        self._share = share or (lambda total: slice(0, total))
        self._batch_size, self._seed, self._shuffle, self._drop_last = batch_size, seed, shuffle, drop_last
        self._workers, self._pin, self._max_bad, self._report, self._remark = workers, pin, max_bad, report, remark
        allowed = max(3, math.ceil(max_bad * self._total)) if max_bad else 0
        self._builder = BatchBuilder(images, cut, seed, skip=skip, allowed=allowed, crops=crops, reduced=reduced)

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self._drop_last:
            return max(1, self._total // self._batch_size)
        return math.ceil(self._total / self._batch_size)

    def batches(self, epoch: int, start: int = 0, empty: bool = False) -> Iterator[BuiltBatch]:
        """The batches of one epoch from number `start` on, as `cut` makes them. Raises TooManyBad.

        empty   yield those without a usable image too, so that all processes have equally many
        """
        tasks = self._tasks(epoch, start)
        self._note({})
        self._note_beyond(self._builder.beyond)  # of the images sampled to estimate the size of the set
        if self._workers:
            built_batches = map_batches(self._builder, tasks, self._workers, pin=self._pin, patience=self.patience)
        else:  # the builder's cache and generator are not for several threads
            built_batches = map(self._pinned, in_thread(self._builder, tasks, patience=self.patience))
        for built in built_batches:
            self._note(built.bad)
            self._note_beyond(built.beyond)
            if empty or built.images is not None:
                yield built

    def _tasks(self, epoch: int, start: int) -> list[Task]:
        n, size = self._total, self._batch_size
        total = len(self) * size if self._drop_last else n
        # R crops of each image: the epochs R·c, R·c + 1, … share an order and each takes its part of it
        (cycle, turn), distinct = divmod(epoch, self._crops), total // self._crops
        rounds = [self._order(cycle, number) for number in range(math.ceil(total / n))]
        order = torch.cat(rounds)[turn * distinct :][:distinct].repeat_interleave(self._crops).tolist()
        places = [range(at, min(at + size, total))[self._share(size)] for at in range(start * size, total, size)]
        return [Task(epoch, place, order[place.start : place.stop]) for place in places]

    def _order(self, epoch: int, number: int) -> Int[Tensor, "n"]:
        if not self._shuffle:
            return torch.arange(self._total)
        generator = Generator().manual_seed(mix(self._seed, epoch, number, ORDER))
        return torch.randperm(self._total, generator=generator)

    def _pinned(self, built: BuiltBatch) -> BuiltBatch:
        return built._replace(images=built.images.pin_memory()) if self._pin and built.images is not None else built

    @property
    def unusable(self) -> dict[int, str]:
        """Unusable images found so far, {number in the source: reason}."""
        return dict(self._noted)

    def learn(self, bad: dict[int, str]) -> None:
        """Add the unusable images that another process has found, {number: reason}. Raises TooManyBad."""
        self._builder.bad.update(bad)
        self._note(bad)

    def _note_beyond(self, beyond: dict[int, str]) -> None:
        for i, values in beyond.items():
            if i not in self.beyond and self._remark is not None:
                self._remark(f"{self._where(i)}: {values}")
            self.beyond[i] = values

    def _note(self, bad: dict[int, str]) -> None:
        for i, reason in bad.items():
            where = self._where(i)
            if where not in self.bad and self._report is not None:
                self._report(f"{where}: {reason}")
            self._noted[i] = self.bad[where] = reason
        if self._workers:
            self._builder.bad.update(bad)  # workers of the next epoch skip what one worker has found
        if self._builder.too_many(self._noted):
            raise TooManyBad(self.bad, self._total, self._max_bad)


class Loader(BatchLoader):
    """Batches of a source, epoch by epoch.

    batch_size   images a batch; with drop_last every batch is full: a source smaller than one batch is repeated, in
                 another order, until the batch is full
    seed         of the order and of the crops
    shuffle      another order each epoch; without it the source's own
    workers      processes that decode; 0: a thread of this process
    channels, min_side   see `ImageCache`
    max_bad      share of images that may be unusable before TooManyBad is raised. Up to 3 are always allowed, so
                 that one of them does not fail a small folder, unless the share is 0
    reduced      decode a JPEG no larger than its crop needs: faster, and not pixel for pixel what whole decoding gives.
                 Random crops are then not cached
    skip         leave unusable images out, for evaluation. Otherwise the next usable one, by number, takes the place
    pin          page-locked memory, for asynchronous copies to a GPU
    share        number of images in the global batch -> the slice of them that this process makes; None: all. Crops
                 depend on the position in the global batch, so that the slices of all processes are one process's batch
    crops        R consecutive crops of each image: an epoch has as many crops as with 1, of R times fewer images, and
                 R epochs have every image once
    keep         where decoded images are cached, see `Keep`; cache_mb is the limit of "auto", in MiB
    device       of the crops, with keep "device" and on_device
    on_device    JPEGs are decoded on the device, a batch at once; other pixels by a few levels
    scaling      how images deeper than 8 bits are read and normalised; None: all become uint8, see `decode`
    report       gets a line for each unusable image, once
    remark       gets a line for each image with values beyond the range of `scaling`, once; the image is still used
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        workers: int = 0,
        channels: int = 3,
        min_side: int = 1,
        max_bad: float = 0.01,
        reduced: bool = False,
        skip: bool = False,
        pin: bool = False,
        cache_mb: int = KEPT_MB,
        share: Callable[[int], slice] | None = None,
        crops: int = 1,
        keep: Keep = "auto",
        device: torch.device | None = None,
        on_device: bool = False,
        scaling: Scaling | None = None,
        report: Callable[[str], None] | None = None,
        remark: Callable[[str], None] | None = None,
    ) -> None:
        self.source, levels = source, scaling and scaling.levels
        self._labels = None if source.labels is None else torch.tensor(source.labels)
        images: IndexedImages
        cut: Cut
        random = transform if isinstance(transform, RandomCropFlip) else None
        scaled = random if reduced else None
        options: dict[str, Any] = {"channels": channels, "min_side": min_side, "levels": levels}
        decoded = ImageCache(source, cache_mb=0, **options)
        if keep == "auto" and random and not (reduced or on_device) and fits(decoded, device, cache_mb):
            keep = "device"
        if keep == "device" or on_device:
            images, cut = _on_device(decoded, transform, device, keep, workers)
            workers, pin = 0, False
        else:
            budgets = {"never": 0, "ram": half_of_memory_mb()}
            cut, budget = OneByOne(transform, scaling), 0 if scaled else budgets.get(keep, cache_mb)
            images = ImageCache(source, cache_mb=budget, shared=workers > 0, must=keep == "ram", **options)
        super().__init__(
            images, cut, source.where, batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last, workers=workers,
            max_bad=max_bad, skip=skip, pin=pin, share=share, crops=crops, reduced=scaled, report=report, remark=remark,
        )  # fmt: skip

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `start` on. Raises TooManyBad."""
        for built in self.batches(epoch, start):
            yield self._batch(built)

    def shares(self, epoch: int = 0) -> Iterator[Batch]:
        """As `epoch`, where this process has a `share` of each batch: of some it may have no image, [0]."""
        for built in self.batches(epoch, empty=True):
            images = torch.empty(0, dtype=torch.uint8) if built.images is None else built.images
            yield self._batch(built._replace(images=images))

    def _batch(self, built: BuiltBatch) -> Batch:
        index = torch.tensor(built.numbers, dtype=torch.long)
        return Batch(built.images, None if self._labels is None else self._labels[index], index)


def iterate(
    source: Source,
    transform: Transform,
    batch_size: int,
    *,
    workers: int = 0,
    channels: int = 3,
    min_side: int = 1,
    max_bad: float = 0.01,
    pin: bool = False,
    scaling: Scaling | None = None,
    report: Callable[[str], None] | None = None,
    remark: Callable[[str], None] | None = None,
) -> Iterator[Batch]:
    """Every usable image once, in the source's order, for evaluation; batches may be short. Raises TooManyBad."""
    options: dict[str, Any] = {"workers": workers, "channels": channels, "min_side": min_side, "max_bad": max_bad}
    options |= {"pin": pin, "scaling": scaling, "report": report, "remark": remark}
    return in_order(source, transform, batch_size, **options).epoch(0)


def in_order(source: Source, transform: Transform, batch_size: int, **options: Any) -> Loader:
    """The loader of every usable image once, in the source's order; `options` of `Loader`."""
    fixed: dict[str, Any] = {"shuffle": False, "drop_last": False, "skip": True, "cache_mb": 0}
    return Loader(source, transform, batch_size, **fixed, **options)


def _check(batch_size: int, workers: int, max_bad: float, crops: int, drop_last: bool) -> None:
    if batch_size < 1 or workers < 0 or not 0 <= max_bad <= 1:
        raise UserError(
            f"batch size {batch_size}, workers {workers}, max_bad {max_bad:g}: need 1 or more, 0 or more, 0..1"
        )
    if crops < 1 or batch_size % crops or (crops > 1 and not drop_last):
        raise UserError(f"{crops} crops of a picture do not divide batches of {batch_size}: choose a divisor")


def _on_device(
    images: ImageCache, transform: Transform, device: torch.device | None, keep: Keep, workers: int
) -> tuple[IndexedImages, Cut]:
    if not isinstance(transform, RandomCropFlip):
        raise UserError("only random crops are made on the device")
    if images.estimate() and images.deep:
        raise UserError('8-bit pictures alone lie on a device or are decoded there: use data.keep "ram", decode "cpu"')
    device = device or torch.device("cpu")
    device_images = CachedOnDevice(images, device, workers) if keep == "device" else DecodedOnDevice(images, device)
    return device_images, CropOnDevice(transform)
