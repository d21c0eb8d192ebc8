"""Which images are held out for a test where no test images are given: a fifth, and some of every class."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from remask.errors import UserError
from remask.images.sources.files import printable
from remask.images.sources.subset import Subset

BY_CLASS = "by class"
"""How the facts of a run name this rule; runs that name none held out a fifth of all, whatever the classes."""


class HeldOut(NamedTuple):
    """Numbers of the images to learn from and of those to test on, and of the classes without one to test on."""

    train: list[int]
    test: list[int]
    untested: list[int]


def hold_out(order: Sequence[int], labels: Sequence[int] | None = None) -> HeldOut:
    """The first fifth of a random order of the images, one at least.

    Where that leaves a class with nothing to learn from, or one of two images or more with nothing to test on, it is
    the first fifth of each class instead, one at least; a class of one image is learned from.
    """
    count = max(1, len(order) // 5)
    plain = list(order[count:]), list(order[:count])
    if labels is None:
        return HeldOut(*plain, [])
    members: dict[int, list[int]] = {}
    for i in order:
        members.setdefault(labels[i], []).append(i)
    learned, tested = ({labels[i] for i in side} for side in plain)
    if len(learned) == len(members) and all(len(own) < 2 for label, own in members.items() if label not in tested):
        return HeldOut(*plain, sorted(members.keys() - tested))
    chosen = {i for own in members.values() for i in own[: min(max(1, len(own) // 5), len(own) - 1)]}
    train, test = [i for i in order if i not in chosen], [i for i in order if i in chosen]
    return HeldOut(train, test, sorted(label for label, own in members.items() if len(own) < 2))


def fifth(order: Sequence[int]) -> HeldOut:
    """The first fifth of the order, whatever the classes: what runs of older versions held out."""
    count = len(order) // 5
    return HeldOut(list(order[count:]), list(order[:count]), [])


def split_source(source: Any, held_out: HeldOut, cure: str) -> tuple[Subset, Subset]:
    """The source cut in two; the second part remarks on classes that it has no image of.

    cure   what to type where there is nothing to learn from, or nothing to test on
    Raises UserError there.
    """
    if not held_out.train or not held_out.test:
        alone = len(source) == 1
        why = "a single picture" if alone else f"{len(source)} pictures, and no two of one class"
        raise UserError(
            f"{printable(source.name)} has {why}: none can be held out for the test; give more pictures, or {cure}"
        )
    train, test = (Subset(source, numbers) for numbers in (held_out.train, held_out.test))
    if names := [source.classes[label] for label in held_out.untested if source.classes]:
        few = ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")
        test.remarks += [
            f"{source.name}: {len(names)} class{'es' * (len(names) > 1)} of one picture ({few}) "
            f"{'are' if len(names) > 1 else 'is'} learned and not tested"
        ]
    return train, test


__all__ = ["BY_CLASS", "HeldOut", "fifth", "hold_out", "split_source"]
