"""A sample of a source, measured before a run: how deep its images are, which values are black and white, mean and
deviation. The results are written into the run, so that all its commands read images in the same way."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from remask.errors import UserError
from remask.images.decoding import BadImage, decode
from remask.images.levels import RAW, Levels
from remask.images.sources.opening import Source
from remask.images.sources.stored import stored

SAMPLE = 100
"""Images that are measured, spread over the source."""

PIXELS = 1 << 16
"""Least number of pixels of an image, evenly spread, over which its mean is taken."""

OTHER_BANDS = re.compile(r"(\d+) channels? where")
"""The message of `decode` for an image with another number of bands."""

Rule = str | tuple[float, float]


class FirstOf:
    """A source of images alone, of one whose items are images with masks or boxes."""

    def __init__(self, source: Any) -> None:
        self.name, self._source = source.name, source
        self.labels: list[int] | None = None
        self.classes: list[str] | None = None
        self.left_out: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._source)

    def read(self, i: int) -> bytes:
        return self._source.read(i)[0]

    def where(self, i: int) -> str:
        return self._source.where(i)


class Measured(NamedTuple):
    """The results of a sample of so many images.

    rule        "full", "byte" or two numbers: `data.range` with "auto" resolved
    mean, std   per channel of values in 0..1
    colour      whether most images have three bands or more
    deep        whether any image is deeper than 8 bits
    least, most of the values as they are stored
    kinds       {kind of image, such as "JPEG RGB, 8 bits": number of images}
    left_out    {contents that decoding ignores, such as "alpha": number of images}
    """

    pictures: int
    rule: Rule
    mean: list[float]
    std: list[float]
    colour: bool
    deep: bool
    least: float
    most: float
    kinds: Counter[str]
    left_out: Counter[str]

    def describe(self, channels: int, rule_given: Rule = "auto", kinds: bool = True) -> str:
        """One line: the kinds of images, unless `kinds` is False, the channels, and how values are scaled."""
        text = f"read as {channels} channel{'s' * (channels > 1)}"
        if kinds:
            text = "; ".join(f"{count} {kind}" for kind, count in self.kinds.most_common(3)) + "; " + text
        if self.rule == "byte":
            return text + ", cut to 8 bits (data.range byte)"
        if self.deep:
            ends = "the range of each type" if isinstance(self.rule, str) else f"{self.rule[0]:g} to {self.rule[1]:g}"
            scaling = "data.range auto, " * (rule_given == "auto") + f"values {self.least:g} to {self.most:g}"
            text += f", black to white is {ends} ({scaling} in {self.pictures} pictures)"
        skipped = ", ".join(f"{what} of {count}" for what, count in self.left_out.most_common())
        return text + (f"; left out: {skipped}" if skipped else "")


def measure(source: Source, channels: int, rule: Rule = "auto", *, sample: int = SAMPLE) -> Measured:
    """Measure some images of a source. Raises UserError where all of them lack contrast, or none can be used.

    rule   "auto": where every image is deeper than 8 bits, from 0 (or minus a power of two) to the power of two less
           one that holds the largest value, or for floats from 0 to at least 1; else "full", each type's own range
    """
    measured = {i: _raw(source, i, channels) for i in _spread(len(source), sample)}
    usable = [image for image in measured.values() if isinstance(image, _Raw)]
    if not usable:
        i, why = next(iter(measured.items()))
        raise UserError(
            f"none of {len(measured)} pictures of {source.name} can be used; {source.where(i)}: {why}"
            + _bands_cure(map(str, measured.values()))
        )
    kinds, left_out = (
        Counter(image.kind for image in usable),
        Counter(what for image in usable for what in image.left_out),
    )
    deep = any(image.dtype != torch.uint8 for image in usable)
    least, most = min(image.least for image in usable), max(image.most for image in usable)
    rule_given = rule
    if rule == "auto":
        rule = _power(usable, least, most) if all(image.dtype != torch.uint8 for image in usable) else "full"
    mean, std = _moments(source, [image.number for image in usable], channels, rule)
    colour = sum(image.bands >= 3 for image in usable) * 2 > len(usable)
    result = Measured(len(usable), rule, mean, std, colour, deep, least, most, kinds, left_out)
    _check_contrast(result, source.name, rule_given)
    return result


def _bands_cure(reasons: Iterable[str]) -> str:
    """The advice to set data.channels, where every image has the same wrong number of bands; else empty."""
    numbers = {match[1] if (match := OTHER_BANDS.match(reason)) else None for reason in reasons}
    return f"; they need a network of data.channels={bands}" if len(numbers) == 1 and (bands := numbers.pop()) else ""


class _Raw(NamedTuple):
    number: int
    dtype: torch.dtype
    integers: bool
    least: float
    most: float
    kind: str
    bands: int
    left_out: Sequence[str]


def _spread(total: int, count: int) -> list[int]:
    return [i * total // min(count, total) for i in range(min(count, total))]


def _raw(source: Source, i: int, channels: int) -> "_Raw | str":
    try:
        data = source.read(i)
        image, header = decode(data, channels, levels=RAW), stored(data, channels)
    except (BadImage, OSError) as error:
        return str(error)
    least, most = (float(value) for value in torch.aminmax(image.float()))
    integers = not image.is_floating_point() or bool((image == image.round()).all())
    return _Raw(i, image.dtype, integers, least, most, header.kind, header.bands, header.left_out)


def _power(images: Sequence[_Raw], least: float, most: float) -> Rule:
    """The smallest power of two that holds the sample; whole numbers end one below it, as types do."""
    integers = all(image.integers for image in images)
    low = -float(2 ** math.ceil(math.log2(-least))) if least < 0 else 0.0
    if integers and (most > 1 or any(image.dtype == torch.uint16 for image in images)):
        return low, float(2 ** max(1, math.floor(math.log2(max(most, 1)) + 1)) - 1)
    return low, float(2 ** max(0, math.ceil(math.log2(most)))) if most > 0 else 1.0


def _moments(source: Source, numbers: Sequence[int], channels: int, rule: Rule) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel, every image weighing the same; a channel without any has deviation 1."""
    levels, means, squares = Levels.of(rule), list[Tensor](), list[Tensor]()
    for i in numbers:
        try:
            image = decode(source.read(i), channels, levels=levels)
        except (BadImage, OSError):
            continue
        step = max(1, int((image[0].numel() / PIXELS) ** 0.5))
        values = (levels or Levels()).unit(image[:, ::step, ::step]).double().flatten(1)
        means.append(values.mean(1))
        squares.append(values.square().mean(1))
    mean = torch.stack(means).mean(0)
    std = (torch.stack(squares).mean(0) - mean.square()).clamp(min=0).sqrt()
    return [float(f"{value:.6g}") for value in mean], [float(f"{value:.6g}") if value > 1e-9 else 1.0 for value in std]


def _check_contrast(measured: Measured, name: str, rule_given: Rule) -> None:
    if measured.least == measured.most:
        raise UserError(
            f"the pictures of {name} have no contrast: every value of {measured.pictures} of them is {measured.least:g}"
        )
    if measured.deep and measured.rule != "byte":
        low, high = (Levels.of(measured.rule) or Levels()).bounds(torch.uint16)
        if isinstance(measured.rule, str) and measured.most <= 1:
            low, high = 0.0, 1.0
        if (measured.most - measured.least) * 255 < high - low:
            cure = f"[{measured.least:g},{measured.most:g}]" if rule_given == "auto" else "auto"
            raise UserError(
                f"the pictures of {name} have no contrast in data.range {low:g} to {high:g}: their values are "
                f"{measured.least:g} to {measured.most:g}; use --set data.range={cure}"
            )


__all__ = ["FirstOf", "Measured", "Rule", "measure"]
