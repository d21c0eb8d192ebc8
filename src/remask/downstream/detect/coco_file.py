"""The lists of a COCO instances file, its categories and its pictures; `coco_annotations` has the third list.

Exporters write ids as text and sizes as floats: what has one meaning is taken by it. What is damaged is named: pictures
and annotations may be left out (`skip_bad`), a file whose ids contradict one another may not be used at all.
"""

import gc
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from remask.downstream.inputs import unreadable_annotations
from remask.errors import UserError
from remask.images.sources.files import printable

Entry: TypeAlias = dict[str, Any]
CURE = "repair them, or leave them out by data.skip_bad (--skip-bad)"
_LISTS = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}
"""What an instances file must say."""
LONGEST = 1 << 20
"""Pixels of a side that no picture has more of."""


class Faults:
    """Lines about entries that cannot be used, in groups; the first group ends the opening unless they may be skipped.

    lines   of all groups, in the order of the groups
    """

    def __init__(self, skip: bool) -> None:
        self._skip, self.lines = skip, list[str]()

    def add(self, lines: Sequence[str], total: int, words: str, cure: str = CURE, opening: str = "") -> None:
        """Raises UserError "opening 3 of `total` `words` (the first lines): cure", unless they may be skipped."""
        if lines and not self._skip:
            raise UserError(f"{opening}{len(lines)} of {total} {words} ({first(lines)}): {cure}")
        self.lines += lines

    def lacking(self, lines: Sequence[str], total: int, what: str, path: str) -> None:
        """Entries of the list `what` that do not say what they must."""
        words = f"{what} lack one of {', '.join(_LISTS[what])}, or have it of another type"
        cure = "export the file anew" if what == "categories" else CURE
        self.add(lines, total, words, cure, f"{printable(path)} is no COCO instances file: ")


def load(path: str) -> dict[str, Any]:
    """The file's lists. Raises UserError in one line: no file, no JSON, other lists, no pictures or categories."""
    shown = printable(path)
    try:
        with open(os.path.expanduser(path), "rb") as file, _uncollected():
            data = json.loads(file.read())  # which finds out UTF-8, 16 or 32, with a byte order mark or without
    except OSError as error:
        raise unreadable_annotations(path, error) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown} is no COCO file: it is not JSON ({printable(str(error))})") from None
    lacking = [key for key in _LISTS if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if lacking:
        raise UserError(f"{shown} is no COCO instances file: it has no list {', '.join(lacking)}")
    if any(isinstance(a, dict) and "segments_info" in a for a in data["annotations"][:1]):
        raise UserError(f"{shown} is a COCO panoptic file: detection needs the instances file of the same pictures")
    for key in ("images", "categories"):
        if not data[key]:
            raise UserError(f"{shown} names no {key}: there is nothing to detect")
    assert isinstance(data, dict)
    return data


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looks for garbage: among millions of new lists they take longer than reading the file."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def categories_of(entries: Sequence[Any], path: str) -> tuple[dict[Any, Any], list[str]]:
    """The id of each category by `key_of` it, in the order of the ids, and their names, all different.

    Two categories of one name stay two: each gets its id behind the name.
    """
    bad = [f"number {n}" for n, entry in enumerate(entries) if not _is_category(entry)]
    Faults(skip=False).lacking(bad, len(entries), "categories", path)
    _check_twice([key_of(entry["id"]) for entry in entries], "categories", path)
    ordered = sorted(entries, key=lambda entry: (isinstance(key_of(entry["id"]), str), key_of(entry["id"])))
    ids = {key_of(entry["id"]): _id(entry["id"]) for entry in ordered}
    names = [printable(str(entry["name"])) for entry in ordered]
    while twice := {name for name, times in Counter(names).items() if times > 1}:
        names = [f"{name} ({i})" if name in twice else name for name, i in zip(names, ids.values(), strict=True)]
    return ids, names


def _is_category(entry: Any) -> bool:
    name = isinstance(entry, dict) and isinstance(entry.get("name"), str | int | float)
    return name and key_of(entry.get("id")) is not None


def images_of(entries: Sequence[Any], path: str, faults: Faults) -> list[Entry]:
    """The pictures that are told of completely, with their sizes as whole numbers; `id` as `_id` has it."""
    bad = [f"number {n}" for n, entry in enumerate(entries) if not _is_image(entry)]
    faults.lacking(bad, len(entries), "images", path)
    sound = [entry for entry in entries if _is_image(entry)] if bad else list(entries)
    _check_twice([key_of(entry["id"]) for entry in sound], "images", path)
    return [
        {**entry, "id": _id(entry["id"]), "height": int(entry["height"]), "width": int(entry["width"])}
        for entry in sound
    ]


def _is_image(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str) or key_of(entry.get("id")) is None:
        return False
    return _is_side(entry.get("height")) and _is_side(entry.get("width"))


def _is_side(value: Any) -> bool:
    return isinstance(value, int | float) and 1 <= value <= LONGEST and value == int(value) and value is not True


def _check_twice(keys: Sequence[Any], what: str, path: str) -> None:
    if twice := [str(key) for key, times in Counter(keys).items() if times > 1]:
        raise UserError(
            f"{printable(path)} gives {len(twice)} ids of {what} more than once (ids {first(twice)}): export it anew"
        )


def key_of(value: Any) -> int | str | None:
    """What an id is matched by: numbers by value, also where they are written as text or floats; None: it is no id."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is str and value:
        plain = value.isascii() and value.isdigit() and len(value) <= 18 and str(int(value)) == value
        return int(value) if plain else value
    return None


def _id(value: Any) -> int | str:
    """An id as the file writes it, but for floats."""
    return int(value) if isinstance(value, float) else value


def first(lines: Sequence[str]) -> str:
    """Three of them, for a line."""
    return "; ".join(lines[:3]) + ("; …" if len(lines) > 3 else "")


__all__ = ["CURE", "Entry", "Faults", "categories_of", "first", "images_of", "key_of", "load"]
