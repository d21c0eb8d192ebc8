"""Images of a source by number: read, decoded, checked, and cached in memory where the whole set fits."""

import contextlib
import multiprocessing
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from remask.errors import UserError
from remask.images.decoding import BadImage, Reduction, decode
from remask.images.levels import Levels, Scaling
from remask.images.loading.memory import shared_memory_left
from remask.images.sources.opening import Source

Keep = Literal["auto", "never", "ram", "device"]
"""Where decoded images are cached: in memory if they are few MiB, nowhere, in memory or else raise, on the device."""


KEPT_MB = 1024
"""MiB up to which "auto" caches a set."""


class ImageCache:
    """`get(i)` is the i-th image, [C, H, W], uint8 or as deep as `levels` says; it must not be written to.

    channels, min_side   of every image, its shorter side in pixels being at least min_side; another raises BadImage
    levels               how images deeper than 8 bits are read, see `decode`; None: all become uint8
    cache_mb             MiB that all decoded images may take to be cached, estimated from a few of them; 0: no cache
    shared               cache them in memory that worker processes share
    must                 raise UserError where there is no room to cache them

    `kept_bytes` is the size of the full cache, 0 without one. `beyond` holds the images met so far with values outside
    the range, {number: these values in words}.
    """

    def __init__(
        self,
        source: Source,
        *,
        channels: int = 3,
        min_side: int = 1,
        cache_mb: int = KEPT_MB,
        shared: bool = False,
        must: bool = False,
        levels: Levels | None = None,
    ) -> None:
        self.source, self.channels, self._min_side, self._levels = source, channels, min_side, levels
        self.beyond: dict[int, str] = {}
        self.deep = False
        samples = self._samples() if cache_mb else {}
        expected = _mean_bytes(samples) * len(source)
        self._cache = _cache(expected, len(source), channels, cache_mb << 20, shared)
        self.kept_bytes = 0 if isinstance(self._cache, _NoCache) else expected
        if must and samples and not self.kept_bytes:
            raise UserError(_no_room(source.name, expected, cache_mb << 20))
        for i, image in samples.items():
            self._cache.put(i, image)

    def __len__(self) -> int:
        return len(self.source)

    def estimate(self) -> int:
        """Bytes that all images take decoded, estimated from a few; sets `deep` if any of these is not uint8."""
        samples = dict[int, Tensor]()
        for i in range(0, len(self), max(1, len(self) // 8)):
            with contextlib.suppress(BadImage):
                samples[i] = self._load(i)[0]
        self.deep = any(image.dtype != torch.uint8 for image in samples.values())
        return _mean_bytes(samples) * len(self)

    def ahead(self, numbers: Sequence[int]) -> None:
        """Called with the images that are read next; there is nothing to prepare here."""

    def get(self, i: int, reduction: Reduction | None = None) -> Num[Tensor, "C H W"]:
        """The i-th image. `reduction` says how much smaller a JPEG may be decoded; such an image is not cached."""
        if reduction:
            return self._load(i, reduction)[0]
        cached = self._cache.get(i)
        if cached is not None:
            return cached
        image, encoded = self._load(i)
        if encoded:  # arrays lie in memory already
            self._cache.put(i, image)
        return image

    def read(self, i: int) -> bytes | np.ndarray | None:
        """The undecoded image of the source; None where it cannot be read."""
        try:
            return self.source.read(i)
        except OSError:
            return None

    def checked(self, image: Num[Tensor, "C H W"]) -> Num[Tensor, "C H W"]:
        """The image, if it is large enough. Raises BadImage."""
        height, width = image.shape[-2:]
        if min(height, width) < self._min_side:
            raise BadImage(f"{width}x{height} is smaller than a {self._min_side}-pixel patch")
        return image

    def _load(self, i: int, reduction: Reduction | None = None) -> tuple[Num[Tensor, "C H W"], bool]:
        try:
            data = self.source.read(i)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from None
        image = self.checked(decode(data, self.channels, reduction=reduction, levels=self._levels))
        if self._levels and (outside := self._levels.beyond(image)):
            self.beyond[i] = outside
        return image, isinstance(data, bytes)

    def _samples(self) -> dict[int, Num[Tensor, "C H W"]]:
        """A few encoded images from all over the source, by number; none where it yields arrays."""
        samples = {}
        for i in range(0, len(self), max(1, len(self) // 8)):
            try:
                image, encoded = self._load(i)
            except BadImage:
                continue
            if not encoded:
                return {}
            samples[i] = image
        return samples


def decoded(data: bytes | np.ndarray, channels: int, scaling: Scaling | None) -> Num[Tensor, "C H W"]:
    """Pixels in 0..255, black to white: uint8, or floats for a set deeper than 8 bits. Raises BadImage."""
    return (
        scaling.shades(decode(data, channels, levels=scaling.levels))
        if scaling
        else decode(data, channels, levels=None)
    )


class _Cache(Protocol):
    def get(self, i: int) -> Tensor | None: ...

    def put(self, i: int, image: Tensor) -> None: ...


class _NoCache:
    """No cache, for sets that do not fit."""

    def get(self, i: int) -> Tensor | None:
        return None

    def put(self, i: int, image: Tensor) -> None:
        pass


class _ProcessCache:
    """The cache of one process: images of any size until the budget, in bytes, is spent."""

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


TYPES = (torch.uint8, torch.uint16, torch.float32)
"""Types of decoded images."""


class _SharedCache:
    """The cache of several processes: a block of shared memory, filled from its start. Untouched pages cost nothing."""

    def __init__(self, n: int, channels: int, size: int) -> None:
        storage = torch.UntypedStorage._new_shared(size)  # share_memory_() would copy, and so fill, all of it
        self._bytes = torch.empty(0, dtype=torch.uint8).set_(storage)
        # start in bytes, height, width, index in TYPES; height 0: not cached
        self._places = torch.zeros(n, 4, dtype=torch.int64).share_memory_()
        self._filled, self._lock = torch.zeros(1, dtype=torch.int64).share_memory_(), multiprocessing.Lock()
        self._channels = channels

    def get(self, i: int) -> Tensor | None:
        start, height, width, kind = self._places[i].tolist()
        if not height:
            return None
        length = height * width * self._channels * TYPES[kind].itemsize
        pixels = self._bytes[start : start + length].view(TYPES[kind])
        return pixels.view(height, width, self._channels).permute(2, 0, 1)

    def put(self, i: int, image: Tensor) -> None:
        with self._lock:
            start = -(-int(self._filled) // image.itemsize) * image.itemsize
            if start + image.nbytes > len(self._bytes):
                return
            self._filled.fill_(start + image.nbytes)
        height, width = image.shape[1:]
        place = self._bytes[start : start + image.nbytes].view(image.dtype).view(height, width, self._channels)
        place.copy_(image.permute(1, 2, 0))
        self._places[i, 0], self._places[i, 2], self._places[i, 3] = start, width, TYPES.index(image.dtype)
        self._places[i, 1] = height


def _cache(expected: int, n: int, channels: int, budget: int, shared: bool) -> _Cache:
    if not expected or expected > budget:
        return _NoCache()
    if not shared:
        return _ProcessCache(budget)
    room = shared_memory_left() // 2
    if expected > room:
        return _NoCache()
    return _SharedCache(n, channels, min(budget, room, expected + expected // 4 + (1 << 20)))


def _mean_bytes(samples: dict[int, Tensor]) -> int:
    return sum(image.nbytes for image in samples.values()) // len(samples) if samples else 0


def _no_room(name: str, expected: int, budget: int) -> str:
    return (
        f'data.keep "ram": the pictures of {name} take about {expected / 1e9:.1f} GB decoded, and {budget / 1e9:.1f} '
        "GB may be used, half of the free memory (with workers, of /dev/shm too): pack them smaller with "
        'remask data pack SRC --size 256 --out FILE.remask, or leave data.keep at "auto"'
    )
