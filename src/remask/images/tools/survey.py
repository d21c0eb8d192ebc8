"""What is in a source: every image read and decoded once, and counted."""

import functools
import hashlib
import io
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Generator

from remask.errors import UserError
from remask.images.decoding import BadImage, decode
from remask.images.levels import FULL, Levels
from remask.images.loading.workers import each
from remask.images.sources.opening import Source
from remask.images.sources.stored import stored
from remask.images.tools.measuring import Rule, measure
from remask.images.transforms import RandomCropFlip
from remask.types import Size

TIMED = 256
"""Images whose crop is timed, spread over the source."""

PIXELS = 1 << 16
"""Pixels of an image that its mean is taken over, at least, evenly spread."""


@dataclass
class Survey:
    """The counts. Heights and widths in pixels, rates in images per second of one core.

    pixels      how images are read and scaled, in words, as a sample of them shows; or why they are refused
    range       `data.range` as that sample settles it
    mean, std   per channel of pixels in 0..1, of the images' own means: each image weighs the same
    repeated    images whose content came before
    frames      images of several frames or pages, of which the first counts
    left_out    what the source does not take, by reason
    splits      images of each split, where its folders or columns are such
    remarks     lines about labels and columns that are not used
    decode_rate, loader_rate   decoding alone, and with a random crop
    """

    source: str
    pictures: int
    usable: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    height: tuple[int, int, int] = (0, 0, 0)
    width: tuple[int, int, int] = (0, 0, 0)
    shorter: int = 0
    too_small: int = 0
    repeated: int = 0
    frames: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    classes: dict[str, int] | None = None
    pixels: str = ""
    range: Rule = "full"
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    stored_bytes: int = 0
    decoded_bytes: int = 0
    decode_rate: float = 0.0
    loader_rate: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; minimum, median and maximum by their names."""
        content = asdict(self)
        return content | {
            key: dict(zip(("min", "median", "max"), content[key], strict=True)) for key in ("height", "width")
        }


class Facts(NamedTuple):
    """One image: what it is, its size, the sums of its pixels, and how long it took."""

    kind: str
    frames: int
    size: Size
    stored: int
    decoded: int
    digest: bytes
    mean: np.ndarray
    square: np.ndarray
    decoding: float
    cropping: float | None


def survey(
    source: Source,
    *,
    channels: int = 3,
    patch: int = 16,
    size: Size = (224, 224),
    workers: int = 0,
    rule: Rule = "auto",
    progress: Callable[[int, Survey], None] = lambda done, so_far: None,
) -> Survey:
    """Look at every image. `patch` is the side below which one cannot be used, `size` that of the timed crops,
    `rule` what `data.range` would be.
    """
    found, facts = Survey(source.name, len(source)), list[Facts]()
    found.left_out, found.splits = dict(source.left_out), dict(getattr(source, "splits", {}))
    found.remarks = list(getattr(source, "remarks", []))
    try:
        sample = measure(source, channels, rule)
        found.pixels, found.range = sample.describe(channels, rule, kinds=False), sample.rule
    except UserError as error:  # what is unusable is named below
        found.pixels = str(error)
    levels = Levels.of(found.range) or FULL
    for i, one in enumerate(each(Examined(source, channels, size, levels), len(source), workers)):
        if isinstance(one, str):
            found.unusable[source.where(i)] = one
        else:
            facts.append(one)
        found.usable = len(facts)
        progress(i + 1, found)
    if source.labels is not None:
        names = source.classes or []
        counts = sorted(Counter(source.labels).items())
        found.classes = {names[n] if 0 <= n < len(names) else str(n): count for n, count in counts}
    if facts:
        _summarise(found, facts, patch)
    return found


def _summarise(found: Survey, facts: list[Facts], patch: int) -> None:
    heights, widths = [fact.size[0] for fact in facts], [fact.size[1] for fact in facts]
    found.kinds = dict(Counter(fact.kind for fact in facts).most_common())
    found.height, found.width = _spread(heights), _spread(widths)
    found.shorter = int(statistics.median(min(fact.size) for fact in facts))
    found.too_small = sum(min(fact.size) < patch for fact in facts)
    found.frames = sum(fact.frames > 1 for fact in facts)
    found.repeated = len(facts) - len({fact.digest for fact in facts})
    mean = np.mean([fact.mean for fact in facts], axis=0)
    variance = np.mean([fact.square for fact in facts], axis=0) - mean**2
    found.mean = [round(float(value), 4) for value in mean]
    found.std = [round(float(value), 4) for value in np.sqrt(np.maximum(variance, 0))]
    found.stored_bytes = sum(fact.stored for fact in facts)
    found.decoded_bytes = sum(fact.decoded for fact in facts)
    decoding = statistics.fmean(fact.decoding for fact in facts)
    cropping = [fact.cropping for fact in facts if fact.cropping is not None]
    found.decode_rate = round(1 / max(decoding, 1e-6), 1)
    found.loader_rate = round(1 / max(decoding + statistics.fmean(cropping or [0.0]), 1e-6), 1)


def _spread(values: list[int]) -> tuple[int, int, int]:
    return min(values), int(statistics.median(values)), max(values)


class Examined:
    """The facts of the i-th image, or why it cannot be used."""

    def __init__(self, source: Source, channels: int, size: Size, levels: Levels = FULL) -> None:
        self._source, self._channels, self._crop, self._levels = source, channels, RandomCropFlip(size), levels
        self._step = max(1, len(source) // TIMED)

    def __call__(self, i: int) -> Facts | str:
        _warm()
        try:
            data = self._source.read(i)
            began = time.process_time()
            image = decode(data, self._channels, levels=self._levels)
            decoding = time.process_time() - began
        except OSError as error:
            return error.strerror or str(error)
        except BadImage as bad:
            return str(bad)
        began = time.process_time()
        if timed := i % self._step == 0:
            self._crop(image, Generator().manual_seed(i))
        cropping = time.process_time() - began if timed else None
        step = max(1, int((image[0].numel() / PIXELS) ** 0.5))
        pixels = self._levels.unit(image[:, ::step, ::step]).flatten(1)
        mean, square = pixels.mean(1).numpy(), pixels.square().mean(1).numpy()
        content = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes() + repr(data.shape).encode()
        digest = hashlib.blake2b(content, digest_size=16).digest()
        shape = int(image.shape[1]), int(image.shape[2])
        header = stored(data, self._channels)
        return Facts(
            header.kind, header.frames, shape, len(content), image.nbytes, digest, mean, square, decoding, cropping
        )


@functools.cache
def _warm() -> None:
    """The first JPEG and the first crop of a process load libraries, which is not the images' time."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    RandomCropFlip((8, 8))(decode(stream.getvalue()), Generator().manual_seed(0))
    torch.set_num_threads(1)
