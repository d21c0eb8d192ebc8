"""Differences between two inventories of one source, as phrases that name the first changed entry."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from remask.images.sources.files import printable
from remask.images.sources.fingerprint import Inventory

PHRASES = {
    "blocks": "the content is another", "bytes": "the content is another", "checksum": "the content is another",
    "ids": "other ids stand for the classes",
    "columns": "the columns differ", "rows": "the rows of the files differ", "shape": "the shape of pictures differs",
}  # fmt: skip
"""Name of a fact of an inventory -> the phrase for its change."""


def differences(old: Inventory, new: Inventory) -> list[str]:
    """A phrase for each kind of change, classes first; empty where all that both inventories state is equal.

    An inventory lacks names where they were too many to be saved, or where its entries have none.
    """
    phrases = of_classes(old.classes or [], new.classes or [])
    entries = _of_counts(old, new) if old.count != new.count else _of_entries(old, new)
    if entries:
        return phrases + entries
    facts = [name for name in new.facts if name in old.facts and old.facts[name] != new.facts[name]]
    phrases += dict.fromkeys(PHRASES.get(name, f"{name} differs") for name in facts)
    for (singular, plural), before, after in (
        (("label differs", "labels differ"), old.labels, new.labels),
        (("content differs", "contents differ"), old.hashes, new.hashes),
    ):
        if before is not None and after is not None and not facts:
            phrases += _at(np.flatnonzero(before != after), new.names, singular, plural)
    return phrases


def of_classes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Phrases for the differences between two lists of classes; empty where they are equal."""
    gone, fresh = _without(old, new), _without(new, old)
    if not gone and not fresh:
        return [] if list(old) == list(new) else ["the classes are in another order"]
    return [", ".join(_classes(names, what) for names, what in ((gone, "gone"), (fresh, "new")) if names)]


def _classes(names: Sequence[str], what: str) -> str:
    if len(names) == 1:
        return f"class {printable(names[0])} is {what}"
    shown = ", ".join(printable(name) for name in names[:3]) + (f" and {len(names) - 3} more" * (len(names) > 3))
    return f"classes {shown} are {what}"


def _of_counts(old: Inventory, new: Inventory) -> list[str]:
    """A phrase with the old and new number of entries, and the first name that is new or gone."""
    text = [f"{old.count:,} {old.what.removesuffix('s') if old.count == 1 else old.what} became {new.count:,}"]
    if old.names and new.names:
        gone, fresh = _without(old.names, new.names), _without(new.names, old.names)
        text += [f"first {what} {printable(names[0])}" for names, what in ((fresh, "new"), (gone, "gone")) if names]
    return [", ".join(text)]


def _of_entries(old: Inventory, new: Inventory) -> list[str]:
    """Phrases for changed names, order or sizes, where the number of entries is the same."""
    if not old.names or not new.names:
        return []
    if old.names == new.names:
        return _at(np.flatnonzero(old.sizes != new.sizes), new.names, "size differs", "sizes differ")
    gone, fresh = _without(old.names, new.names), _without(new.names, old.names)
    if gone or fresh:
        changes = ((gone, "gone"), (fresh, "new"))
        return [", ".join(f"{len(names):,} {what}, first {printable(names[0])}" for names, what in changes if names)]
    at = next(i for i, (before, after) in enumerate(zip(old.names, new.names, strict=True)) if before != after)
    return [f"the order differs, first {printable(new.names[at])} where {printable(old.names[at])} was"]


def _at(numbers: np.ndarray, names: Sequence[str], singular: str, plural: str) -> list[str]:
    """A phrase with the number of entries that differ, and the first of them."""
    if not len(numbers):
        return []
    first = f", first {printable(names[numbers[0]])}" if len(names) > numbers[0] else ""
    return [f"{len(numbers):,} {singular if len(numbers) == 1 else plural}{first}"]


def _without(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """The names that `others` lacks, or has less often, in their order."""
    available, missing = Counter(others), list[str]()
    for name in names:
        if available[name] > 0:
            available[name] -= 1
        else:
            missing.append(name)
    return missing


__all__ = ["differences", "of_classes"]
