"""Which images are held out for a test where no test images are given: a fifth, and some of every class."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from remask.errors import UserError
from remask.images.sources.files import printable
from remask.images.sources.subset import Subset

BY_CLASS = "by class"
"""Name of this rule in the facts of a run; runs that name none held out a fifth of all, whatever the classes."""


class HeldOut(NamedTuple):
    """A source divided in two.

    train, test   numbers of the images to train on and to test on
    untested      numbers of the classes without a test image
    """

    train: list[int]
    test: list[int]
    untested: list[int]


def hold_out(order: Sequence[int], labels: Sequence[int] | None = None) -> HeldOut:
    """Hold out the first fifth of a random order of the images, at least one.

    If that leaves a class without an image to train on, or a class of two images or more without one to test on, it is
    the first fifth of each class instead, at least one image; a class of one image is trained on.
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
    """Hold out the first fifth of the order, whatever the classes, as older versions did."""
    count = len(order) // 5
    return HeldOut(list(order[count:]), list(order[:count]), [])


def split_source(source: Any, held_out: HeldOut, cure: str) -> tuple[Subset, Subset]:
    """The subsets (train, test) of a source; remarks of the second name the classes without a test image.

    cure   the advice in the error message
    Raises UserError where there is no image to train on, or none to test on.
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
