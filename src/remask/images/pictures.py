"""Pictures of a source by number: read, decoded, checked, and kept in memory where the whole set fits."""

import math
import shutil
from typing import Protocol

import torch
from jaxtyping import UInt8
from torch import Tensor

from remask.images.decoding import BadImage, Reduction, decode
from remask.images.sources import Source


class Pictures:
    """`get(i)` is the i-th picture, uint8 [C, H, W]; it must not be written to.

    channels, min_side   what every picture must have; another raises BadImage
    cache_mb             decoded pictures are kept if all of them take no more (judged by the first ones)
    shared               keep them in memory that worker processes share; needs pictures of one size
    """

    def __init__(
        self, source: Source, *, channels: int = 3, min_side: int = 1, cache_mb: int = 1024, shared: bool = False
    ) -> None:
        self.source, self._channels, self._min_side = source, channels, min_side
        self._cache = _cache(self._samples() if cache_mb else [], len(source), cache_mb << 20, shared)

    def __len__(self) -> int:
        return len(self.source)

    def get(self, i: int, reduction: Reduction | None = None) -> UInt8[Tensor, "C H W"]:
        """`reduction` says by how much the picture may be smaller; only pictures that are not kept are."""
        kept = self._cache.get(i)
        if kept is not None:
            return kept
        image, encoded = self._load(i, reduction if isinstance(self._cache, _Nothing) else None)
        if encoded:  # arrays lie in memory already
            self._cache.put(i, image)
        return image

    def _load(self, i: int, reduction: Reduction | None = None) -> tuple[UInt8[Tensor, "C H W"], bool]:
        try:
            data = self.source.read(i)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from None
        image = decode(data, self._channels, reduction=reduction)
        height, width = image.shape[-2:]
        if min(height, width) < self._min_side:
            raise BadImage(f"{width}x{height} is smaller than a {self._min_side}-pixel patch")
        return image, isinstance(data, bytes)

    def _samples(self) -> list[UInt8[Tensor, "C H W"]]:
        """A few encoded pictures from all over the source."""
        found = []
        for i in range(0, len(self), max(1, len(self) // 8)):
            try:
                image, encoded = self._load(i)
            except BadImage:
                continue
            if not encoded:
                return []
            found.append(image)
        return found


class _Cache(Protocol):
    def get(self, i: int) -> Tensor | None: ...

    def put(self, i: int, image: Tensor) -> None: ...


class _Nothing:
    """For sets that do not fit."""

    def get(self, i: int) -> Tensor | None:
        return None

    def put(self, i: int, image: Tensor) -> None:
        pass


class _Own:
    """For one process; pictures of any size until the budget is spent."""

    def __init__(self, budget: int) -> None:
        self._kept: dict[int, Tensor] = {}
        self._left = budget

    def get(self, i: int) -> Tensor | None:
        return self._kept.get(i)

    def put(self, i: int, image: Tensor) -> None:
        if image.nbytes <= self._left:
            self._left -= image.nbytes
            # HWC in memory is the layout that the uint8 resize reads fastest
            self._kept[i] = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


class _Shared:
    """For several processes: one block of shared memory for pictures of one size. Two that write the same one agree."""

    def __init__(self, n: int, shape: tuple[int, ...]) -> None:
        channels, height, width = shape
        self._pixels = torch.empty((n, height, width, channels), dtype=torch.uint8).share_memory_().permute(0, 3, 1, 2)
        self._have = torch.zeros(n, dtype=torch.bool).share_memory_()

    def get(self, i: int) -> Tensor | None:
        return self._pixels[i] if self._have[i] else None

    def put(self, i: int, image: Tensor) -> None:
        if image.shape == self._pixels.shape[1:]:
            self._pixels[i] = image
            self._have[i] = True


def _cache(samples: list[Tensor], n: int, budget: int, shared: bool) -> _Cache:
    if not samples or n * sum(image.nbytes for image in samples) / len(samples) > budget:
        return _Nothing()
    if not shared:
        return _Own(budget)
    shapes = {tuple(image.shape) for image in samples}
    if len(shapes) > 1 or n * math.prod(samples[0].shape) > _shared_memory_left() // 2:
        return _Nothing()
    return _Shared(n, samples[0].shape)


def _shared_memory_left() -> int:
    """Bytes. Containers give little, and writing beyond it kills the process rather than raising."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return 1 << 40  # no such file system: shared memory is ordinary memory here
