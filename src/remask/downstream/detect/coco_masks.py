"""Segmentations of COCO's files: polygons and run lengths, checked against their picture, read, written and turned."""

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
"""What lies further than so many of the picture's longer side beyond it was not drawn on it."""
_TOGETHER = 1 << 22
"""Characters of compressed run lengths that are looked at in one go."""
_LONGEST = 7
"""Characters of one run length: 5 bits each, enough for 2^34 pixels."""
_SLACK = 1.0
"""Pixels by which a mask and its box may miss each other: exporters round one of them, and count from 0 or 1."""
EMPTY, ELSEWHERE = "a mask without a pixel", "a mask that lies elsewhere than its box"


def fault_of_mask(segmentation: Any, size: Size, box: Sequence[float]) -> str | None:
    """Why a segmentation cannot be used on a picture of this height and width, with a box x y w h; compressed strings
    are not looked at.
    """
    if not segmentation:
        return "no mask, where others have one"
    if isinstance(segmentation, list):
        return _fault_of_polygons(segmentation, size) or _fault_of_place(segmentation, box)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "a mask that is neither polygons nor run lengths"
    own, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(own, list) or len(own) != 2 or not all(isinstance(n, int | float) for n in own):
        return "a mask of no size"
    if own != [*size]:
        return f"a mask of {own[1]}x{own[0]}, where the picture has {size[1]}x{size[0]}"
    segmentation["size"] = [*size]  # whole numbers, where a file has 64.0
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
        if inside or (low >= 0 and high <= min(size)):  # nearly all are, and need no closer look
            inside = True
        beyond = FAR * max(size)
        if low < -beyond or high > max(size) + beyond:
            return f"a polygon that reaches from {low:g} to {high:g}, far beyond the {width}x{height} picture"
        if not inside:
            x, y = polygon[0::2], polygon[1::2]
            inside = max(x) > 0 and max(y) > 0 and min(x) < width and min(y) < height
    return None if inside else f"a polygon outside the {width}x{height} picture"


def _fault_of_place(polygons: list[list[float]], box: Sequence[float]) -> str | None:
    """Whether all polygons are lines without an area, or none of them comes near the box."""
    if not any(map(_has_area, polygons)):
        return "polygons without an area"
    x, y, w, h = box
    for polygon in polygons:
        if x <= polygon[0] <= x + w and y <= polygon[1] <= y + h:  # nearly all are, and need no closer look
            return None
        across, down = polygon[0::2], polygon[1::2]
        if _meet(min(across), max(across), x, w) and _meet(min(down), max(down), y, h):
            return None
    return ELSEWHERE


def _meet(low: float, high: float, begin: float, length: float) -> bool:
    return low < begin + length + _SLACK and high > begin - _SLACK


def _has_area(polygon: list[float]) -> bool:
    """Whether not all points lie on one line."""
    x, y = polygon[0], polygon[1]
    far = next((at for at in range(2, len(polygon), 2) if (polygon[at], polygon[at + 1]) != (x, y)), None)
    if far is None:
        return False
    dx, dy = polygon[far] - x, polygon[far + 1] - y
    return any(dx * (polygon[at + 1] - y) != dy * (polygon[at] - x) for at in range(far + 2, len(polygon), 2))


def _fault_of_runs(segmentation: dict[str, Any], pixels: int, box: Sequence[float]) -> str | None:
    counts = segmentation["counts"]
    try:
        runs_given = [int(n) for n in counts] if isinstance(counts, list) else None
        if runs_given is None or runs_given != counts:
            return "run lengths that are no whole numbers"
    except (TypeError, ValueError, OverflowError):
        return "run lengths that are no whole numbers"
    if min(runs_given, default=0) < 0:
        return "run lengths below 0"
    if sum(runs_given) != pixels:
        return f"a mask of {sum(runs_given)} pixels, where the picture has {pixels}"
    segmentation["counts"] = runs_given
    runs = np.array(runs_given, np.int64)
    return _fault_of_drawn(runs, np.zeros(len(runs), np.int64), [(segmentation["size"][0], box)])[0]


Place = tuple[int, Sequence[float]]
"""The height of a mask, and the box x y w h that it should lie in."""


def faults_of_strings(
    strings: Sequence[str], pixels: Sequence[int], places: Sequence[Place] | None = None
) -> Iterator[tuple[int, str]]:
    """(number, fault) of the compressed run lengths that are damaged or do not make `pixels` of their picture; with
    `places` also of those that have no pixel, or none near their box.
    """
    first = 0
    while first < len(strings):
        last, characters = first, 0
        while last < len(strings) and (last == first or characters + len(strings[last]) <= _TOGETHER):
            characters += len(strings[last])
            last += 1
        damaged, sums, runs, owner = _decoded(strings[first:last])
        drawn = _fault_of_drawn(runs, owner, places[first:last]) if places else [None] * (last - first)
        for n, wanted in enumerate(pixels[first:last]):
            if damaged[n]:
                yield first + n, "damaged run lengths"
            elif sums[n] != wanted:
                yield first + n, f"a mask of {sums[n]} pixels, where the picture has {wanted}"
            elif (fault := drawn[n]) is not None:
                yield first + n, fault
        first = last


def _fault_of_drawn(
    runs: Int[np.ndarray, "m"], owner: Int[np.ndarray, "m"], places: Sequence[Place]
) -> list[str | None]:  # fmt: skip
    """What is wrong with where masks lie; run m is one of mask `owner[m]`, and they begin with one of background.

    A run goes down a column and on at the top of the next one: of one that does, all rows count.
    """
    total = len(places)
    begin = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=total))[:-1]]).astype(np.int64)
    ends = np.cumsum(runs)
    ends -= np.concatenate([[0], ends])[begin[owner]]  # from the first pixel of each mask on
    drawn = ((np.arange(len(runs)) - begin[owner]) % 2 == 1) & (runs > 0)
    of, last = owner[drawn], ends[drawn] - 1
    first = last + 1 - runs[drawn]
    height = np.array([max(1, high) for high, _ in places], np.int64)[of]
    x, y, w, h = np.array([box for _, box in places], np.float64).reshape(-1, 4).T[:, of]
    left, right = first // height, last // height + 1
    several = right - left > 1
    top, bottom = np.where(several, 0, first % height), np.where(several, height, last % height + 1)
    near = (left < x + w + _SLACK) & (right > x - _SLACK) & (top < y + h + _SLACK) & (bottom > y - _SLACK)
    filled, met = np.zeros(total, bool), np.zeros(total, bool)
    filled[of] = True
    met[of[near]] = True
    return [None if ok else ELSEWHERE if some else EMPTY for ok, some in zip(met, filled, strict=True)]


_Runs = tuple[Bool[np.ndarray, "n"], Int[np.ndarray, "n"], Int[np.ndarray, "m"], Int[np.ndarray, "m"]]


def _decoded(strings: Sequence[str]) -> _Runs:
    """Which strings cannot be run lengths, the sum of the others' runs, the runs and whose each is, all at once.

    A number is 5 bits a character, the lowest first, with a bit that says that more follow and the sign in the last;
    from the fourth on it is the difference from the last but one (COCO's rleToString).
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
    damaged[owner[filled[~last[filled]]]] = True  # a number goes on behind the end
    last[filled] = True
    stops = np.flatnonzero(last)
    starts = np.concatenate([[0], stops[:-1] + 1]) if len(stops) else stops
    place = np.arange(len(value)) - np.repeat(starts, stops - starts + 1)
    long = owner[place >= _LONGEST]
    damaged[long] = True
    place = np.minimum(place, _LONGEST)
    numbers = np.add.reduceat((value & 31) << 5 * place, starts) if len(stops) else value
    digits = np.minimum(stops - starts + 1, _LONGEST + 1)
    numbers -= np.where(value[stops] & 16, np.int64(1) << 5 * digits, 0)
    return damaged, *_summed(numbers, owner[stops], damaged), owner[stops]


def _summed(
    numbers: Int[np.ndarray, "m"], owner: Int[np.ndarray, "m"], damaged: Bool[np.ndarray, "n"]
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "m"]]:
    """The sum of each string's runs, and the runs, from differences; strings with a run below 0 become damaged."""
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
    """0 and 1 of the polygons or run lengths of one instance."""
    return torch.from_numpy(coco().decode(as_runs(segmentation, size)))


def as_runs(segmentation: Any, size: Size) -> Any:
    """Compressed run lengths of any segmentation."""
    packed = isinstance(segmentation, dict) and isinstance(segmentation["counts"], str | bytes)
    return segmentation if packed else coco().segmToRle(segmentation, size[1], size[0])


def area_of(segmentation: Any, size: Size) -> float:
    """Pixels of a segmentation."""
    return float(coco().area(as_runs(segmentation, size)))


def encode_mask(mask: UInt8[Tensor, "H W"]) -> dict[str, Any]:
    """Compressed run lengths, as a JSON file holds them."""
    rle = coco().encode(mask.cpu().t().contiguous().t().numpy())  # columns first: COCO's order
    counts = rle["counts"]
    return {"size": [int(n) for n in mask.shape], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def turned_segmentation(segmentation: Any, size: Size, orientation: int) -> Any:
    """Polygons or run lengths on a picture of height and width `size`, as they lie on the turned one."""
    if isinstance(segmentation, list):
        return [turned_points(polygon, size, orientation) for polygon in segmentation]
    if not segmentation:
        return segmentation
    turned = turned_mask(decode_mask(segmentation, size).numpy(), orientation)
    return encode_mask(torch.from_numpy(turned))


def coco() -> Any:
    """The counting of faster-coco-eval. Raises UserError where it is not installed."""
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise UserError("detection needs the package faster-coco-eval: pip install 'remask[dense]'") from None
    return mask


__all__ = [
    "FAR", "area_of", "as_runs", "decode_mask", "encode_mask", "fault_of_mask", "faults_of_strings",
    "turned_segmentation",
]  # fmt: skip
