"""Checks every annotation of a COCO instances file against its image, and names the unusable ones."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from remask.downstream.detect.coco_file import Entry, Faults, key_of
from remask.downstream.detect.coco_masks import FAR, Place, fault_of_mask, faults_of_strings
from remask.images.sources.files import printable

_CROWD = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "0": 0, "0.0": 0, "false": 0, "no": 0, "none": 0, "null": 0, "": 0}
"""Values of iscrowd that exporters write as text."""
_NUMBERS = frozenset((int, float))
"""Types of a box's numbers; true and false are none."""


class Known(NamedTuple):
    """The images and categories to which annotations refer, by `key_of` their ids.

    listed      all images of the file
    images      the entries of those that are used
    categories  ids as the file writes them
    """

    listed: frozenset[Any]
    images: dict[Any, Entry]
    categories: dict[Any, Any]


def annotations_of(entries: Sequence[Any], known: Known, path: str, faults: Faults) -> tuple[list[list[Entry]], bool]:
    """(usable annotations of each image, with crowds; whether they have masks).

    Normalises image_id, category_id, iscrowd and area in place, for `CocoSource`. Unusable annotations go to `faults`,
    which raises UserError unless they may be skipped. path: the file, for errors.
    """
    valid = [a for a in entries if _is_annotation(a)]
    if len(valid) < len(entries):
        bad = [f"number {n}" for n, a in enumerate(entries) if not _is_annotation(a)]
        faults.lacking(bad, len(entries), "annotations", path)
    for key, what, ids in (("images", "image_id", known.listed), ("categories", "category_id", known.categories)):
        valid = _referring(valid, key, what, ids, path, faults)
    used = [a for a in valid if a["image_id"] in known.images]
    masks = any(a.get("segmentation") for a in used)
    reasons = _faults_of(used, known, masks)
    lines = [_line(used[n], n, known, reasons[n]) for n in sorted(reasons)]
    faults.add(lines, len(used), f"annotations of {printable(path)} cannot be used")
    by_image: dict[Any, list[Entry]] = {key: [] for key in known.images}
    for n, a in enumerate(used):
        if n not in reasons:
            by_image[a["image_id"]].append(a)
            a["image_id"], a["category_id"] = known.images[a["image_id"]]["id"], known.categories[a["category_id"]]
    return list(by_image.values()), masks


def _is_annotation(entry: Any) -> bool:
    """Whether an entry has all required keys; replaces its ids by `key_of` them."""
    if not isinstance(entry, dict):
        return False
    box = entry.get("bbox")
    if type(box) is not list or len(box) != 4 or not _NUMBERS.issuperset(map(type, box)):
        return False
    for name in ("image_id", "category_id"):
        value = entry.get(name)
        if type(value) is not int:
            if (key := key_of(value)) is None:
                return False
            entry[name] = key
    return True


def _referring(entries: list[Entry], key: str, what: str, ids: Any, path: str, faults: Faults) -> list[Entry]:
    """The annotations whose id `what` is in the list `key`; the others go to `faults`."""
    dangling = [f"annotation {_shown_id(a, n)}: {what} {printable(str(a[what]))}" for n, a in enumerate(entries)
            if a[what] not in ids]  # fmt: skip
    description = f"annotations of {printable(path)} name {key} that the file does not list"
    faults.add(dangling, len(entries), description)
    return [a for a in entries if a[what] in ids] if dangling else entries


def _shown_id(annotation: Entry, place: int) -> str:
    """The id of an annotation for messages, or else its index in the list."""
    value = annotation.get("id")
    return printable(str(value)) if isinstance(value, int | float | str) else f"number {place}"


def _line(annotation: Entry, place: int, known: Known, fault: str) -> str:
    image = known.images[annotation["image_id"]]
    return f"annotation {_shown_id(annotation, place)} of {printable(image['file_name'])}: {fault}"


def _faults_of(annotations: Sequence[Entry], known: Known, masks: bool) -> dict[int, str]:
    """{index: reason} of unusable annotations; converts iscrowd and area to numbers in place."""
    faults, known_ids = dict[int, str](), set[Any]()
    packed, strings, pixels, places = list[int](), list[str](), list[int](), list[Place]()
    for n, a in enumerate(annotations):
        image = known.images[a["image_id"]]
        size = image["height"], image["width"]
        fault = _fault_of_number(a, known_ids) or _fault_of_box(a["bbox"], size)
        if fault is None and masks:
            shape = a.get("segmentation")
            fault = fault_of_mask(shape, size, a["bbox"])
            if fault is None and type(shape) is dict and type(shape["counts"]) is str:
                packed.append(n)
                strings.append(shape["counts"])
                pixels.append(size[0] * size[1])
                places.append((size[0], a["bbox"]))
        if fault is not None:
            faults[n] = fault
    for place, fault in faults_of_strings(strings, pixels, places):
        faults[packed[place]] = fault
    return faults


def _fault_of_number(annotation: Entry, known_ids: set[Any]) -> str | None:
    """The fault in iscrowd, area or id, None if there is none; sets iscrowd and area (None if missing) in place."""
    crowd = annotation.get("iscrowd")
    if crowd is None or type(crowd) is str:
        value = 0 if crowd is None else _CROWD.get(crowd.strip().lower())
    else:
        value = int(crowd) if isinstance(crowd, int | float) and crowd in (0, 1) else None
    if value is None:
        return f"iscrowd is {printable(repr(crowd)[:40])}, and not 0 or 1"
    annotation["iscrowd"], annotation["area"] = value, _area(annotation.get("area"))
    if annotation["area"] == 0:
        return "an area of 0 pixels"
    number = annotation.get("id")
    if number is None:
        return None
    if (key := key_of(number)) is None:
        return f"its id is {printable(repr(number)[:40])}, and no number or text"
    if key in known_ids:
        return "its id is that of another annotation before it"
    known_ids.add(key)
    return None


def _area(value: Any) -> float | int | None:
    """An area in pixels; None if missing or no valid number."""
    try:
        area = value if type(value) is float or type(value) is int else float(value)
        return area if math.isfinite(area) and area >= 0 and not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _fault_of_box(box: list[float], size: tuple[int, int]) -> str | None:
    (height, width), (x, y, w, h) = size, box
    try:
        sound = math.isfinite(x + y + w + h)
    except OverflowError:
        return "a box of numbers that are too large"
    if not sound:
        return f"a box of {w:g}x{h:g} at {x:g}, {y:g}"
    if w <= 0 or h <= 0:
        return f"a box of {w:g}x{h:g}"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return f"a box at {x:g}, {y:g}, outside the {width}x{height} picture"
    beyond = FAR * max(size)
    if min(x, y) < -beyond or x + w > width + beyond or y + h > height + beyond:
        return f"a box of {w:g}x{h:g} at {x:g}, {y:g}, far beyond the {width}x{height} picture"
    return None


__all__ = ["Known", "annotations_of"]
