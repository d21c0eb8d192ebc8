"""Pictures with boxes and masks as batches of one size: jittered in scale for training, whole for evaluation.

Large-scale jitter is Ghiasi et al.'s (2012.07177, section 3), as ViTDet uses it (2203.16527, appendix A.2). What an
epoch yields is a function of (seed, epoch, position) alone, as it is for the pictures of `images.loader`.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from remask.images.coco import CocoSource, Target
from remask.images.decoding import BadImage, decode
from remask.images.making import mix
from remask.images.transforms import resize
from remask.types import Size, UserError

PAD = 128
"""Level of the pixels beside a picture that is smaller than its batch (as detectron2's FixedSizeCrop)."""


class BoxBatch(NamedTuple):
    """Pictures of one size, what is on each in its pixels, and their numbers in the source.

    A label also says "shown", rows and columns of the part that is picture and no padding; it starts at the top left.
    """

    images: UInt8[Tensor, "B C H W"]
    labels: list[Target]
    index: Int[Tensor, "B"]  # type: ignore[assignment]  # the tuple method of this name is not missed


BoxTransform: TypeAlias = Callable[[Tensor, Target, Generator], tuple[Tensor, Target]]
"""Picture and target to the size of the batch; all that is random comes from the generator."""


@dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jitter: the picture as large as fits in a drawn multiple of `size`, a random crop or padding, a flip.

    size    pixels of the batch, multiples of 32
    scale   the multiple, drawn uniformly
    """

    size: Size
    scale: tuple[float, float] = (0.1, 2.0)
    flip: bool = True

    def __post_init__(self) -> None:
        _check(self.size)
        if not 0 < self.scale[0] <= self.scale[1] <= 16:
            raise UserError(f"scale {list(self.scale)}: needs 0 < low <= high <= 16")

    def __call__(
        self, image: UInt8[Tensor, "C H W"], target: Target, generator: Generator
    ) -> tuple[UInt8[Tensor, "C h w"], Target]:
        draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        share = self.scale[0] + draws[0] * (self.scale[1] - self.scale[0])
        size = image.shape[-2], image.shape[-1]
        resized = fitting(size, (self.size[0] * share, self.size[1] * share))
        corner = [int(draw * (max(a - b, 0) + 1)) for draw, a, b in zip(draws[1:3], resized, self.size, strict=True)]
        placed = Placed(size, resized, (corner[0], corner[1]), self.size)
        return placed(image, target, flip=self.flip and draws[3] < 0.5)


@dataclass(frozen=True)
class Fit:
    """The whole picture, as large as fits in `size` pixels, then padded: for evaluation."""

    size: Size

    def __post_init__(self) -> None:
        _check(self.size)

    def __call__(
        self, image: UInt8[Tensor, "C H W"], target: Target, generator: Generator | None = None
    ) -> tuple[UInt8[Tensor, "C h w"], Target]:
        size = image.shape[-2], image.shape[-1]
        return Placed(size, fitting(size, self.size), (0, 0), self.size)(image, target, flip=False)


class Placed(NamedTuple):
    """Where a picture of `size` pixels stands on a canvas: resized to `resized`, then cut from `corner` on."""

    size: Size
    resized: Size
    corner: Size
    canvas: Size

    def __call__(
        self, image: UInt8[Tensor, "C H W"], target: Target, *, flip: bool
    ) -> tuple[UInt8[Tensor, "C h w"], Target]:
        (top, left), (rows, columns) = self.corner, self.shown
        part = resize(image, self.resized)[:, top : top + rows, left : left + columns]
        boxes, cut = self._boxes(target["boxes"])
        keep = (boxes[:, 2:] - boxes[:, :2]).amin(1) >= 1  # pixel
        masks = target["masks"][keep] if "masks" in target else None
        if masks is not None:
            masks = masks[:, self._under(0)][:, :, self._under(1)]
            keep[keep.clone()] = seen = (masks.flatten(1) > 0).any(1)
            masks = masks[seen]
        boxes, cut = boxes[keep], cut[keep]
        if masks is not None and cut.any():
            # official: boxes are drawn anew round all masks; here round those that the crop cuts, the others stay exact
            boxes[cut] = around(masks[cut])
        if flip:
            part = part.flip(-1)
            boxes[:, [0, 2]] = columns - boxes[:, [2, 0]]
        placed = {**target, "boxes": boxes, "labels": target["labels"][keep], "shown": (rows, columns)}
        if masks is not None:
            placed["masks"] = self._padded(masks.flip(-1) if flip else masks, 0)
        return self._padded(part, PAD), placed

    @property
    def shown(self) -> Size:
        """Rows and columns of the canvas that are picture."""
        (rows, columns), (top, left) = self.resized, self.corner
        return min(rows - top, self.canvas[0]), min(columns - left, self.canvas[1])

    def _boxes(self, boxes: Float[Tensor, "n 4"]) -> tuple[Float[Tensor, "n 4"], Bool[Tensor, "n"]]:
        """Boxes on the canvas, and which of them it cuts."""
        (height, width), (rows, columns), (top, left) = self.size, self.resized, self.corner
        scale = torch.tensor([columns / width, rows / height] * 2)
        moved = boxes * scale - torch.tensor([left, top] * 2)
        limits = torch.tensor([self.shown[1], self.shown[0]] * 2, dtype=moved.dtype)
        inside = moved.clamp(torch.zeros(4), limits)
        return inside, ((moved - inside).abs() > 1e-3).any(1)

    def _under(self, axis: int) -> Int[Tensor, "n"]:
        """Row or column of the picture that lies under the middle of each of the canvas's."""
        places = torch.arange(self.shown[axis], dtype=torch.float64) + self.corner[axis] + 0.5
        return (places * self.size[axis] / self.resized[axis]).long().clamp_(max=self.size[axis] - 1)

    def _padded(self, image: UInt8[Tensor, "_ _ _"], value: int) -> UInt8[Tensor, "_ _ _"]:
        (rows, columns), (height, width) = image.shape[-2:], self.canvas
        return F.pad(image, (0, width - columns, 0, height - rows), value=value).contiguous()


class BoxLoader:
    """Batches of a COCO source, epoch by epoch, in full batches; a small source is gone through again to fill one.

    shuffle   another order each epoch, for training. Without it every picture once, in the source's order; the last
              batch may be short
    empty     pictures without an instance too; training leaves them out (as detectron2 does) unless told otherwise
    workers   processes that decode; 0: a thread of this process
    pin       page-locked memory, for copies to a GPU that do not wait
    Raises UserError if there is nothing to train on, and in `epoch` for a picture that cannot be decoded.
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
        pin: bool = False,
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise UserError(f"batch size {batch_size}, workers {workers}: need 1 or more, 0 or more")
        self.source, self._batch_size, self._seed, self._shuffle = source, batch_size, seed, shuffle
        keep = not shuffle if empty is None else empty
        self._numbers = torch.tensor([i for i in range(len(source)) if keep or source.instances(i)], dtype=torch.int64)
        if not len(self._numbers):
            raise UserError(f"no picture of {source.name} has an instance: there is nothing to train a detector on")
        self._workers, self._pin = workers, pin
        self._maker = _Maker(source, transform, seed, channels)

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole = len(self._numbers) / self._batch_size
        return max(1, math.floor(whole)) if self._shuffle else math.ceil(whole)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[BoxBatch]:
        """The batches of one epoch from number `start` on."""
        tasks = self._tasks(epoch)[start:]
        for made in self._by_workers(tasks) if self._workers else self._by_thread(tasks):
            if isinstance(made, str):
                raise UserError(made)
            yield made._replace(images=made.images.pin_memory()) if self._pin else made

    def _tasks(self, epoch: int) -> list["_Task"]:
        n, size = len(self._numbers), self._batch_size
        total = len(self) * size if self._shuffle else n
        order = torch.cat([self._order(epoch, number) for number in range(math.ceil(total / n))])[:total].tolist()
        return [_Task(epoch, at, order[at : at + size]) for at in range(0, total, size)]

    def _order(self, epoch: int, number: int) -> Int[Tensor, "n"]:
        if not self._shuffle:
            return self._numbers
        generator = Generator().manual_seed(mix(self._seed, epoch, number, _ORDER))
        return self._numbers[torch.randperm(len(self._numbers), generator=generator)]

    def _by_thread(self, tasks: list["_Task"]) -> Iterator["BoxBatch | str"]:
        """Two batches ahead."""
        pending: deque[Future[BoxBatch | str]] = deque()
        with ThreadPoolExecutor(1, "remask-boxes") as pool:
            try:
                for task in tasks:
                    pending.append(pool.submit(self._maker.__getitem__, task))
                    if len(pending) > 2:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _by_workers(self, tasks: list["_Task"]) -> Iterator["BoxBatch | str"]:
        return iter(
            DataLoader(
                self._maker,
                batch_size=None,
                sampler=tasks,
                num_workers=min(self._workers, len(tasks)),
                collate_fn=_as_it_is,  # type: ignore[arg-type]  # without a batch size it gets one item
                generator=Generator(),  # or starting the workers would draw from the global stream
            )
        )


class _Task(NamedTuple):
    """What one batch is made of: the place in the epoch decides the crop, the number decides the picture."""

    epoch: int
    first: int
    numbers: list[int]


class _Maker(Dataset["BoxBatch | str"]):
    """Makes batches, in this process or in a worker; a string is why one cannot be made."""

    def __init__(self, source: CocoSource, transform: BoxTransform, seed: int, channels: int) -> None:
        self._source, self._transform, self._seed, self._channels = source, transform, seed, channels

    def __getitem__(self, task: _Task) -> "BoxBatch | str":
        images, labels = [], []
        for position, i in enumerate(task.numbers, task.first):
            try:
                image, target = self._picture(i)
            except (BadImage, OSError) as bad:
                return f"{self._source.where(i)}: {bad}: repair the picture, or take it out of the annotations"
            generator = Generator().manual_seed(mix(self._seed, task.epoch, position, _CROP))
            placed, label = self._transform(image, target, generator)
            images.append(placed)
            labels.append(label)
        return BoxBatch(torch.stack(images), labels, torch.tensor(task.numbers))

    def _picture(self, i: int) -> tuple[UInt8[Tensor, "C H W"], Target]:
        data, target = self._source.read(i)
        image, size = decode(data, self._channels), target["size"]
        if tuple(image.shape[-2:]) != size:
            raise BadImage(f"{image.shape[-1]}x{image.shape[-2]} pixels, where the annotations say {size[1]}x{size[0]}")
        return image, target


def around(masks: UInt8[Tensor, "n H W"]) -> Float[Tensor, "n 4"]:
    """The tightest boxes x0 y0 x1 y1, in pixels, round masks that are not empty."""
    sides = []
    for lit in (masks.amax(1), masks.amax(2)):
        sides += [lit.argmax(1), lit.shape[1] - lit.flip(1).argmax(1)]
    return torch.stack([sides[0], sides[2], sides[1], sides[3]], dim=1).float()


def fitting(size: Size, room: tuple[float, float]) -> Size:
    """The largest height and width of the same shape as `size` that fit, at least 1 pixel each."""
    scale = min(room[0] / size[0], room[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _check(size: Size) -> None:
    if min(size) < 32 or size[0] % 32 or size[1] % 32:
        raise UserError(
            f"image size {size[0]}x{size[1]}: detection needs multiples of 32, the coarsest stride of its pyramid"
        )


_ORDER, _CROP = 1, 2
"""Which stream of random numbers a seed is for."""


def _as_it_is(made: "BoxBatch | str") -> "BoxBatch | str":
    return made


__all__ = ["PAD", "BoxBatch", "BoxLoader", "Fit", "ScaleJitter", "around"]
