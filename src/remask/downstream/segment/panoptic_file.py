"""A COCO panoptic file (format "panoptic segmentation" of cocodataset.org), checked as a whole when it is opened."""

from typing import Any, NamedTuple

import numpy as np

from remask.downstream.segment.label_map import COLOUR, IGNORE, Colour, Table, colours
from remask.errors import UserError
from remask.files.bounds import MOST_ANNOTATIONS
from remask.files.text import read_json
from remask.images.sources.files import printable
from remask.images.sources.labels import repeated


class Panoptic(NamedTuple):
    """Names of images and of their masks with a table of their segments, in the file's order, and the categories."""

    entries: list[tuple[str, str]]
    tables: list[Table]
    titles: list[str]
    palette: list[Colour]


class _Fault(Exception):  # noqa: N818  (turned into a UserError that names the file)
    """What is wrong, and where."""


def read_panoptic(path: str) -> Panoptic:
    """The content of the file. Raises UserError, with the place, for anything that is not as the format says."""
    shown = printable(path)
    try:
        content = read_json(path, shown, most=MOST_ANNOTATIONS)
        lists = [_list(content, key) for key in ("images", "annotations", "categories")]
        categories = _categories(lists[2])
        titles = [
            printable(str(_of(entry, "name", str | int | float, f"category {n}"))) for n, entry in enumerate(lists[2])
        ]
        palette = _palette(lists[2])
        names = _names(lists[0])
        parsed = [_entry(entry, n, names, categories) for n, entry in enumerate(lists[1])]
    except OSError as error:
        raise UserError(f"{shown} cannot be read: {error.strerror or error}") from None
    except (_Fault, ValueError) as error:
        raise UserError(f"{shown} is no COCO panoptic file: {error}") from None
    if duplicate := repeated(titles):
        raise UserError(f"{shown} has two categories of the name {duplicate!r}: give each its own")
    return Panoptic([entry for entry, _ in parsed], [table for _, table in parsed], titles, palette)


def _list(content: Any, key: str) -> list[Any]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise _Fault(f"it has no list {key}")
    return found


def _of(entry: Any, key: str, kind: Any, where: str) -> Any:
    """The value of a key. Raises _Fault where it is not there, or of another type."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Fault(f"{where} has no {key}, or one of another type")
    return value


def _number(entry: Any, key: str, where: str) -> int:
    """A whole number, also as text or as a float; those of segments are colours, 0 to 256³."""
    value = _of(entry, key, int | float | str, where)
    try:
        number = int(value)
    except (ValueError, OverflowError):
        raise _Fault(f"{where} has a {key} that is no whole number") from None
    if number != value and not isinstance(value, str):
        raise _Fault(f"{where} has a {key} that is no whole number")
    return number


def _categories(entries: list[Any]) -> dict[int, int]:
    ids = [_number(entry, "id", f"category {n}") for n, entry in enumerate(entries)]
    if len(set(ids)) < len(ids):
        raise _Fault(f"two categories have the id {next(i for i in ids if ids.count(i) > 1)}")
    return {number: place for place, number in enumerate(ids)}


def _names(entries: list[Any]) -> dict[int | float | str, str]:
    """The file's name of each image by its id."""
    ids = [_of(entry, "id", int | float | str, f"image {n}") for n, entry in enumerate(entries)]
    return {i: _name(entry, f"image {n}") for n, (i, entry) in enumerate(zip(ids, entries, strict=True))}


def _name(entry: Any, where: str) -> str:
    name: str = _of(entry, "file_name", str, where)
    if "\0" in name or (not name.isascii() and any(0xD800 <= ord(char) < 0xE000 for char in name)):
        raise _Fault(f"{where} has a file_name that no file can have")
    return name


def _entry(
    entry: Any, number: int, names: dict[int | float | str, str], categories: dict[int, int]
) -> tuple[tuple[str, str], Table]:
    where = f"annotation {number}"
    image = _of(entry, "image_id", int | float | str, where)
    if image not in names:
        raise _Fault(f"{where} is of an image_id that the file does not list")
    segments = _of(entry, "segments_info", list, where)
    return (names[image], _name(entry, where)), _table(segments, categories, where)


def _table(segments: list[Any], categories: dict[int, int], where: str) -> Table:
    """Colour ids of segments, ascending, and the classes of their categories; void is 255."""
    known = {COLOUR: IGNORE}
    for n, segment in enumerate(segments):
        place = f"segment {n} of {where}"
        number, category = _number(segment, "id", place), _number(segment, "category_id", place)
        if not 0 <= number < COLOUR:
            raise _Fault(f"{place} has an id of no colour, {number if abs(number) < 1 << 64 else 'a huge number'}")
        if category not in categories:
            raise _Fault(f"{place} is of a category_id that the file does not list")
        known[COLOUR + number] = categories[category]
    ids = np.array(sorted(known), np.int32)
    return Table(ids, np.array([known[int(i)] for i in ids], np.int32))


def _palette(entries: list[Any]) -> list[Colour]:
    """The categories' own colours if all have one, else distinct ones."""
    found = [entry.get("color") for entry in entries]
    if not all(found):
        return colours(len(entries))
    chosen = list[Colour]()
    for n, colour in enumerate(found):
        if not isinstance(colour, list) or len(colour) < 3 or not all(
            type(value) is int and 0 <= value <= 255 for value in colour[:3]
        ):  # fmt: skip
            raise _Fault(f"category {n} has a color that is no list of three numbers 0..255")
        chosen.append((colour[0], colour[1], colour[2]))
    return chosen


__all__ = ["Panoptic", "read_panoptic"]
