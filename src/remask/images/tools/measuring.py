"""A sample of a source, looked at before a run: how deep its images are, which values are black and white, mean and
deviation. What is found is written into the run, so that everything that follows reads images in the same way."""

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
"""Images that are looked at, spread over the source."""

PIXELS = 1 << 16
"""Pixels of an image that its mean is taken over, at least, evenly spread."""

OTHER_BANDS = re.compile(r"(\d+) channels? where")
"""How `decode` says that an image has another number of bands."""

Rule = str | tuple[float, float]


class FirstOf:
    """A source of images with masks or boxes as one of images alone."""

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
    """What a sample of so many images shows.

    rule        "full", "byte" or two numbers: `data.range` with "auto" resolved
    mean, std   per channel of values in 0..1
    colour      whether most images have three bands or more
    deep        whether any image is deeper than 8 bits
    least, most of the values as they are stored
    kinds, left_out   how many images are of which kind, and have something that is passed over
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
        """One line: what is read, of which kinds if they are wanted, and how it is scaled."""
        text = f"read as {channels} channel{'s' * (channels > 1)}"
        if kinds:
            text = "; ".join(f"{count} {kind}" for kind, count in self.kinds.most_common(3)) + "; " + text
        if self.rule == "byte":
            return text + ", cut to 8 bits (data.range byte)"
        if self.deep:
            ends = "the range of each type" if isinstance(self.rule, str) else f"{self.rule[0]:g} to {self.rule[1]:g}"
            how = "data.range auto, " * (rule_given == "auto") + f"values {self.least:g} to {self.most:g}"
            text += f", black to white is {ends} ({how} in {self.pictures} pictures)"
        left = ", ".join(f"{what} of {count}" for what, count in self.left_out.most_common())
        return text + (f"; left out: {left}" if left else "")


def measure(source: Source, channels: int, rule: Rule = "auto", *, sample: int = SAMPLE) -> Measured:
    """Look at some images of a source. Raises UserError where all of them lack contrast, or none can be used.

    rule   "auto": where every image is deeper than 8 bits, from 0 (or minus a power of two) to the power of two less
           one that holds the largest value, or for floats from 0 to at least 1; else "full", each type's own range
    """
    looked = {i: _raw(source, i, channels) for i in _spread(len(source), sample)}
    found = [one for one in looked.values() if isinstance(one, _Raw)]
    if not found:
        i, why = next(iter(looked.items()))
        raise UserError(
            f"none of {len(looked)} pictures of {source.name} can be used; {source.where(i)}: {why}"
            + _bands_cure(map(str, looked.values()))
        )
    kinds, left = Counter(one.kind for one in found), Counter(what for one in found for what in one.left_out)
    deep = any(one.dtype != torch.uint8 for one in found)
    least, most = min(one.least for one in found), max(one.most for one in found)
    rule_given = rule
    if rule == "auto":
        rule = _power(found, least, most) if all(one.dtype != torch.uint8 for one in found) else "full"
    mean, std = _moments(source, [one.number for one in found], channels, rule)
    colour = sum(one.bands >= 3 for one in found) * 2 > len(found)
    result = Measured(len(found), rule, mean, std, colour, deep, least, most, kinds, left)
    _check_contrast(result, source.name, rule_given)
    return result


def _bands_cure(reasons: Iterable[str]) -> str:
    """What would read them, where every image has the same number of bands, another than the one that is wanted."""
    found = {match[1] if (match := OTHER_BANDS.match(reason)) else None for reason in reasons}
    return f"; they need a network of data.channels={bands}" if len(found) == 1 and (bands := found.pop()) else ""


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


def _power(found: Sequence[_Raw], least: float, most: float) -> Rule:
    """The smallest power of two that holds the sample; whole numbers end one below it, as types do."""
    integers = all(one.integers for one in found)
    low = -float(2 ** math.ceil(math.log2(-least))) if least < 0 else 0.0
    if integers and (most > 1 or any(one.dtype == torch.uint16 for one in found)):
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


def _check_contrast(found: Measured, name: str, rule_given: Rule) -> None:
    if found.least == found.most:
        raise UserError(
            f"the pictures of {name} have no contrast: every value of {found.pictures} of them is {found.least:g}"
        )
    if found.deep and found.rule != "byte":
        low, high = (Levels.of(found.rule) or Levels()).bounds(torch.uint16)
        if isinstance(found.rule, str) and found.most <= 1:
            low, high = 0.0, 1.0
        if (found.most - found.least) * 255 < high - low:
            cure = f"[{found.least:g},{found.most:g}]" if rule_given == "auto" else "auto"
            raise UserError(
                f"the pictures of {name} have no contrast in data.range {low:g} to {high:g}: their values are "
                f"{found.least:g} to {found.most:g}; use --set data.range={cure}"
            )


__all__ = ["FirstOf", "Measured", "Rule", "measure"]
