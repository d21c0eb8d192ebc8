"""Reads a COCO instances file, and checks its categories and images; `coco_annotations` checks the annotations.

Some exporters write ids as text and sizes as floats: unambiguous values are accepted. Errors name damaged entries:
unusable images and annotations can be skipped (`skip_bad`), contradictory ids cannot.
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
from remask.files.bounds import MOST_ANNOTATIONS, read_file
from remask.images.sources.files import printable

Entry: TypeAlias = dict[str, Any]
CURE = "repair them, or leave them out by data.skip_bad (--skip-bad)"
_LISTS = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}
"""Required lists of an instances file, and required keys of their entries."""
LONGEST = 1 << 20
"""Maximum plausible side of an image in pixels."""


class Faults:
    """Collects lines about unusable entries, or raises UserError for the first ones if they may not be skipped.

    lines   all lines, in the order of `add`
    """

    def __init__(self, skip: bool) -> None:
        self._skip, self.lines = skip, list[str]()

    def add(self, lines: Sequence[str], total: int, words: str, cure: str = CURE, opening: str = "") -> None:
        """Add lines. Raises UserError "`opening`3 of `total` `words` (lines): `cure`" unless they may be skipped."""
        if lines and not self._skip:
            raise UserError(f"{opening}{len(lines)} of {total} {words} ({first(lines)}): {cure}")
        self.lines += lines

    def lacking(self, lines: Sequence[str], total: int, what: str, path: str) -> None:
        """Add entries of the list `what` that lack a required key."""
        words = f"{what} lack one of {', '.join(_LISTS[what])}, or have it of another type"
        cure = "export the file anew" if what == "categories" else CURE
        self.add(lines, total, words, cure, f"{printable(path)} is no COCO instances file: ")


def load(path: str) -> dict[str, Any]:
    """The file's content. Raises UserError, in one line: no file, no JSON, missing lists, no images or categories."""
    shown = printable(path)
    try:
        with _without_gc():  # json detects UTF-8, 16 or 32, with or without a byte order mark
            data = json.loads(read_file(os.path.expanduser(path), MOST_ANNOTATIONS))
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
def _without_gc() -> Iterator[None]:
    """Context without garbage collection, which with millions of new lists takes longer than reading the file."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def categories_of(entries: Sequence[Any], path: str) -> tuple[dict[Any, Any], list[str]]:
    """({`key_of` id: id} of the categories, in the order of ids; their names, made unique).

    The id is appended to the names of categories with equal names.
    """
    bad = [f"number {n}" for n, entry in enumerate(entries) if not _is_category(entry)]
    Faults(skip=False).lacking(bad, len(entries), "categories", path)
    _check_twice([key_of(entry["id"]) for entry in entries], "categories", path)
    ordered = sorted(entries, key=lambda entry: (isinstance(key_of(entry["id"]), str), key_of(entry["id"])))
    ids = {key_of(entry["id"]): _id(entry["id"]) for entry in ordered}
    names = [printable(str(entry["name"])) for entry in ordered]
    while duplicates := {name for name, times in Counter(names).items() if times > 1}:
        names = [f"{name} ({i})" if name in duplicates else name for name, i in zip(names, ids.values(), strict=True)]
    return ids, names


def _is_category(entry: Any) -> bool:
    name = isinstance(entry, dict) and isinstance(entry.get("name"), str | int | float)
    return name and key_of(entry.get("id")) is not None


def images_of(entries: Sequence[Any], path: str, faults: Faults) -> list[Entry]:
    """The complete entries of images, with integer sizes and ids by `_id`; the others go to `faults`."""
    bad = [f"number {n}" for n, entry in enumerate(entries) if not _is_image(entry)]
    faults.lacking(bad, len(entries), "images", path)
    complete = [entry for entry in entries if _is_image(entry)] if bad else list(entries)
    _check_twice([key_of(entry["id"]) for entry in complete], "images", path)
    return [
        {**entry, "id": _id(entry["id"]), "height": int(entry["height"]), "width": int(entry["width"])}
        for entry in complete
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
    """The key by which an id is compared: numbers, also as text or floats, by value; None if it is no id."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is str and value:
        plain = value.isascii() and value.isdigit() and len(value) <= 18 and str(int(value)) == value
        return int(value) if plain else value
    return None


def _id(value: Any) -> int | str:
    """An id as the file writes it; floats as integers."""
    return int(value) if isinstance(value, float) else value


def first(lines: Sequence[str]) -> str:
    """The first three lines as text for a message."""
    return "; ".join(lines[:3]) + ("; …" if len(lines) > 3 else "")


__all__ = ["CURE", "Entry", "Faults", "categories_of", "first", "images_of", "key_of", "load"]
