"""A survey of a source: every image is read and decoded once, and counted."""

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
"""Least number of pixels of an image, evenly spread, over which its mean is taken."""


@dataclass
class Survey:
    """The counts. Heights and widths (least, median, most) in pixels, rates in images per second of one core.

    unusable    {address of an image: reason}
    kinds       number of images of each kind, such as "JPEG RGB, 8 bits"
    too_small   images with a side shorter than a patch
    pixels      how images are read and scaled, in words, by a sample of them; or why they are refused
    range       `data.range` as resolved by that sample
    mean, std   per channel of pixels in 0..1, of the images' own means: each image weighs the same
    repeated    images whose content came before
    frames      images of several frames or pages, of which the first counts
    left_out    entries that the source leaves out, by reason
    splits      number of images of each split, where its folders or columns are splits
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
    """One image: kind, number of frames, height and width, bytes stored and decoded, digest of its content, mean and
    mean square of its pixels per channel, and the seconds that decoding and a crop took."""

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
    """Decode every image of a source and count.

    patch   pixels of the shorter side below which an image is too small
    size    pixels of the timed crops
    rule    `data.range`
    """
    result, facts = Survey(source.name, len(source)), list[Facts]()
    result.left_out, result.splits = dict(source.left_out), dict(getattr(source, "splits", {}))
    result.remarks = list(getattr(source, "remarks", []))
    try:
        sample = measure(source, channels, rule)
        result.pixels, result.range = sample.describe(channels, rule, kinds=False), sample.rule
    except UserError as error:  # unusable images are named below
        result.pixels = str(error)
    levels = Levels.of(result.range) or FULL
    for i, examined in enumerate(each(Examined(source, channels, size, levels), len(source), workers)):
        if isinstance(examined, str):
            result.unusable[source.where(i)] = examined
        else:
            facts.append(examined)
        result.usable = len(facts)
        progress(i + 1, result)
    if source.labels is not None:
        names = source.classes or []
        counts = sorted(Counter(source.labels).items())
        result.classes = {names[n] if 0 <= n < len(names) else str(n): count for n, count in counts}
    if facts:
        _summarise(result, facts, patch)
    return result


def _summarise(result: Survey, facts: list[Facts], patch: int) -> None:
    heights, widths = [fact.size[0] for fact in facts], [fact.size[1] for fact in facts]
    result.kinds = dict(Counter(fact.kind for fact in facts).most_common())
    result.height, result.width = _spread(heights), _spread(widths)
    result.shorter = int(statistics.median(min(fact.size) for fact in facts))
    result.too_small = sum(min(fact.size) < patch for fact in facts)
    result.frames = sum(fact.frames > 1 for fact in facts)
    result.repeated = len(facts) - len({fact.digest for fact in facts})
    mean = np.mean([fact.mean for fact in facts], axis=0)
    variance = np.mean([fact.square for fact in facts], axis=0) - mean**2
    result.mean = [round(float(value), 4) for value in mean]
    result.std = [round(float(value), 4) for value in np.sqrt(np.maximum(variance, 0))]
    result.stored_bytes = sum(fact.stored for fact in facts)
    result.decoded_bytes = sum(fact.decoded for fact in facts)
    decoding = statistics.fmean(fact.decoding for fact in facts)
    cropping = [fact.cropping for fact in facts if fact.cropping is not None]
    result.decode_rate = round(1 / max(decoding, 1e-6), 1)
    result.loader_rate = round(1 / max(decoding + statistics.fmean(cropping or [0.0]), 1e-6), 1)


def _spread(values: list[int]) -> tuple[int, int, int]:
    return min(values), int(statistics.median(values)), max(values)


class Examined:
    """i -> the facts of the i-th image, or the reason why it cannot be used."""

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
    """Load libraries, by a first JPEG and a first crop, before any image is timed."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    RandomCropFlip((8, 8))(decode(stream.getvalue()), Generator().manual_seed(0))
    torch.set_num_threads(1)
