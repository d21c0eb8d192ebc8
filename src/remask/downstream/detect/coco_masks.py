"""Segmentations in COCO files (polygons, run lengths): checks against the image, decoding, encoding, rotation."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from remask.errors import UserError
from remask.images.orientation import turned_mask, turned_points
from remask.types import Size

FAR = 10
"""Annotations further outside an image than this multiple of its longer side do not belong to it."""
_TOGETHER = 1 << 22
"""Maximum number of characters of compressed run lengths that are decoded together."""
_LONGEST = 7
"""Maximum number of characters of one run length: 5 bits each, enough for 2^34 pixels."""
_SLACK = 1.0
"""Tolerated gap in pixels between a mask and its box: exporters round one of them, and count from 0 or 1."""
EMPTY, ELSEWHERE = "a mask without a pixel", "a mask that lies elsewhere than its box"


def fault_of_mask(segmentation: Any, size: Size, box: Sequence[float]) -> str | None:
    """Why a segmentation does not fit an image of `size` (h, w) and a box x y w h; None if it fits.

    Does not decode compressed strings: see `faults_of_strings`.
    """
    if not segmentation:
        return "no mask, where others have one"
    if isinstance(segmentation, list):
        return _fault_of_polygons(segmentation, size) or _fault_of_place(segmentation, box)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "a mask that is neither polygons nor run lengths"
    mask_size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(mask_size, list) or len(mask_size) != 2 or not all(isinstance(n, int | float) for n in mask_size):
        return "a mask of no size"
    if mask_size != [*size]:
        return f"a mask of {mask_size[1]}x{mask_size[0]}, where the picture has {size[1]}x{size[0]}"
    segmentation["size"] = [*size]  # integers, for files with 64.0
    return None if isinstance(counts, str) else _fault_of_runs(segmentation, math.prod(size), box)


def _fault_of_polygons(polygons: list[Any], size: Size) -> str | None:
    height, width = size
    inside = False
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6:
            return "a polygon of fewer than 3 points"
        if len(polygon) % 2:
            return f"a polygon of {len(polygon)} numbers, x without y"
        try:
            low, high, sound = min(polygon), max(polygon), math.isfinite(sum(polygon))
        except (TypeError, OverflowError):
            return "a polygon with something else than numbers"
        if not sound:
            return "a polygon with numbers that are not finite"
        if inside or (low >= 0 and high <= min(size)):  # true for nearly all, a fast test
            inside = True
        beyond = FAR * max(size)
        if low < -beyond or high > max(size) + beyond:
            return f"a polygon that reaches from {low:g} to {high:g}, far beyond the {width}x{height} picture"
        if not inside:
            x, y = polygon[0::2], polygon[1::2]
            inside = max(x) > 0 and max(y) > 0 and min(x) < width and min(y) < height
    return None if inside else f"a polygon outside the {width}x{height} picture"


def _fault_of_place(polygons: list[list[float]], box: Sequence[float]) -> str | None:
    """A fault if all polygons are without an area, or none of them is near the box; else None."""
    if not any(map(_has_area, polygons)):
        return "polygons without an area"
    x, y, w, h = box
    for polygon in polygons:
        if x <= polygon[0] <= x + w and y <= polygon[1] <= y + h:  # true for nearly all, a fast test
            return None
        xs, ys = polygon[0::2], polygon[1::2]
        if _meet(min(xs), max(xs), x, w) and _meet(min(ys), max(ys), y, h):
            return None
    return ELSEWHERE


def _meet(low: float, high: float, begin: float, length: float) -> bool:
    return low < begin + length + _SLACK and high > begin - _SLACK


def _has_area(polygon: list[float]) -> bool:
    """Whether the points are not all on one line."""
    x, y, x1, y1, x2, y2 = polygon[:6]
    if (x1 - x) * (y2 - y) != (y1 - y) * (x2 - x):  # true for nearly all, a fast test
        return True
    far = next((i for i in range(2, len(polygon), 2) if (polygon[i], polygon[i + 1]) != (x, y)), None)
    if far is None:
        return False
    dx, dy = polygon[far] - x, polygon[far + 1] - y
    return any(dx * (polygon[i + 1] - y) != dy * (polygon[i] - x) for i in range(far + 2, len(polygon), 2))


def _fault_of_runs(segmentation: dict[str, Any], pixels: int, box: Sequence[float]) -> str | None:
    counts = segmentation["counts"]
    try:
        lengths = [int(n) for n in counts] if isinstance(counts, list) else None
        if lengths is None or lengths != counts:
            return "run lengths that are no whole numbers"
    except (TypeError, ValueError, OverflowError):
        return "run lengths that are no whole numbers"
    if min(lengths, default=0) < 0:
        return "run lengths below 0"
    if sum(lengths) != pixels:
        return f"a mask of {sum(lengths)} pixels, where the picture has {pixels}"
    segmentation["counts"] = lengths
    runs = np.array(lengths, np.int64)
    return _faults_of_position(runs, np.zeros(len(runs), np.int64), [(segmentation["size"][0], box)])[0]


Place = tuple[int, Sequence[float]]
"""Height of a mask in pixels, and its box x y w h."""


def faults_of_strings(
    strings: Sequence[str], pixels: Sequence[int], places: Sequence[Place] | None = None
) -> Iterator[tuple[int, str]]:
    """Yields (index, fault) of compressed run lengths that are damaged or do not sum to `pixels` of their image.

    places   adds faults of masks that have no pixel, or none near their box
    """
    first = 0
    while first < len(strings):
        last, characters = first, 0
        while last < len(strings) and (last == first or characters + len(strings[last]) <= _TOGETHER):
            characters += len(strings[last])
            last += 1
        damaged, sums, runs, owner = _decoded(strings[first:last])
        drawn = _faults_of_position(runs, owner, places[first:last]) if places else [None] * (last - first)
        for n, expected in enumerate(pixels[first:last]):
            if damaged[n]:
                yield first + n, "damaged run lengths"
            elif sums[n] != expected:
                yield first + n, f"a mask of {sums[n]} pixels, where the picture has {expected}"
            elif (fault := drawn[n]) is not None:
                yield first + n, fault
        first = last


def _faults_of_position(
    runs: Int[np.ndarray, "m"], owner: Int[np.ndarray, "m"], places: Sequence[Place]
) -> list[str | None]:  # fmt: skip
    """The fault of each mask's position, None if it has none; run m belongs to mask `owner[m]`, background first.

    Runs go down columns; a run over several columns counts as covering all rows.
    """
    total = len(places)
    begin = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=total))[:-1]]).astype(np.int64)
    ends = np.cumsum(runs)
    ends -= np.concatenate([[0], ends])[begin[owner]]  # relative to the first pixel of each mask
    drawn = ((np.arange(len(runs)) - begin[owner]) % 2 == 1) & (runs > 0)
    mask_of, last = owner[drawn], ends[drawn] - 1
    first = last + 1 - runs[drawn]
    height = np.array([max(1, high) for high, _ in places], np.int64)[mask_of]
    x, y, w, h = np.array([box for _, box in places], np.float64).reshape(-1, 4).T[:, mask_of]
    left, right = first // height, last // height + 1
    many_columns = right - left > 1
    top, bottom = np.where(many_columns, 0, first % height), np.where(many_columns, height, last % height + 1)
    near = (left < x + w + _SLACK) & (right > x - _SLACK) & (top < y + h + _SLACK) & (bottom > y - _SLACK)
    has_pixels, has_near = np.zeros(total, bool), np.zeros(total, bool)
    has_pixels[mask_of] = True
    has_near[mask_of[near]] = True
    return [None if ok else ELSEWHERE if filled else EMPTY for ok, filled in zip(has_near, has_pixels, strict=True)]


_Runs = tuple[Bool[np.ndarray, "n"], Int[np.ndarray, "n"], Int[np.ndarray, "m"], Int[np.ndarray, "m"]]


def _decoded(strings: Sequence[str]) -> _Runs:
    """Decode strings, vectorised: (which are damaged, sums of runs per string, runs, index of each run's string).

    A number has 5 bits per character, lowest first, one bit that says whether more follow, and the sign in the last;
    from the fourth number on it is the difference from the last but one (COCO's rleToString).
    """
    encoded = [text.encode("latin-1", "replace") for text in strings]
    lengths = np.array([len(text) for text in encoded])
    ends = np.cumsum(lengths)
    damaged = lengths == 0
    value = np.frombuffer(b"".join(encoded), np.uint8).astype(np.int64) - 48
    owner = np.repeat(np.arange(len(strings)), lengths)
    np.logical_or.at(damaged, owner[(value < 0) | (value > 63)], True)
    value &= 63
    last = (value & 32) == 0
    filled = ends[lengths > 0] - 1
    damaged[owner[filled[~last[filled]]]] = True  # the string ends within a number
    last[filled] = True
    stops = np.flatnonzero(last)
    starts = np.concatenate([[0], stops[:-1] + 1]) if len(stops) else stops
    digit = np.arange(len(value)) - np.repeat(starts, stops - starts + 1)
    too_long = owner[digit >= _LONGEST]
    damaged[too_long] = True
    digit = np.minimum(digit, _LONGEST)
    numbers = np.add.reduceat((value & 31) << 5 * digit, starts) if len(stops) else value
    digits = np.minimum(stops - starts + 1, _LONGEST + 1)
    numbers -= np.where(value[stops] & 16, np.int64(1) << 5 * digits, 0)
    return damaged, *_summed(numbers, owner[stops], damaged), owner[stops]


def _summed(
    numbers: Int[np.ndarray, "m"], owner: Int[np.ndarray, "m"], damaged: Bool[np.ndarray, "n"]
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "m"]]:
    """(sum of each string's runs, runs), from differences; marks strings with a negative run as damaged."""
    total = len(damaged)
    numbers = np.where(damaged[owner], 0, numbers)
    counts = np.bincount(owner, minlength=total)
    begin = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    rank = np.arange(len(numbers)) - begin[owner]
    runs = numbers.copy()
    for odd in (False, True):
        chain = np.where((rank > 0) & (rank % 2 == odd), numbers, 0)
        along = np.cumsum(chain)
        before = np.concatenate([[0], along])[begin[owner]]
        runs = np.where((rank > 0) & (rank % 2 == odd), along - before, runs)
    damaged[owner[runs < 0]] = True
    sums = np.zeros(total, np.int64)
    runs = np.clip(runs, 0, 1 << 40)
    np.add.at(sums, owner, runs)
    return sums, runs


def decode_mask(segmentation: Any, size: Size) -> UInt8[Tensor, "H W"]:
    """The mask, 0 and 1, of an instance's polygons or run lengths on an image of `size` (h, w)."""
    return torch.from_numpy(coco().decode(as_runs(segmentation, size)))


def as_runs(segmentation: Any, size: Size) -> Any:
    """Compressed run lengths of any segmentation on an image of `size` (h, w)."""
    packed = isinstance(segmentation, dict) and isinstance(segmentation["counts"], str | bytes)
    return segmentation if packed else coco().segmToRle(segmentation, size[1], size[0])


def area_of(segmentation: Any, size: Size) -> float:
    """Area of a segmentation in pixels."""
    return float(coco().area(as_runs(segmentation, size)))


def encode_mask(mask: UInt8[Tensor, "H W"]) -> dict[str, Any]:
    """Compressed run lengths of a mask for JSON: {"size": [H, W], "counts"}."""
    rle = coco().encode(mask.cpu().t().contiguous().t().numpy())  # column-major, COCO's order
    counts = rle["counts"]
    return {"size": [int(n) for n in mask.shape], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def turned_segmentation(segmentation: Any, size: Size, orientation: int) -> Any:
    """Polygons or run lengths on an image of `size` (h, w), turned by the EXIF orientation."""
    if isinstance(segmentation, list):
        return [turned_points(polygon, size, orientation) for polygon in segmentation]
    if not segmentation:
        return segmentation
    turned = turned_mask(decode_mask(segmentation, size).numpy(), orientation)
    return encode_mask(torch.from_numpy(turned))


def coco() -> Any:
    """The module of faster-coco-eval for masks. Raises UserError if it is not installed."""
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise UserError("detection needs the package faster-coco-eval: pip install 'remask[dense]'") from None
    return mask


__all__ = [
    "FAR", "area_of", "as_runs", "decode_mask", "encode_mask", "fault_of_mask", "faults_of_strings",
    "turned_segmentation",
]  # fmt: skip
