"""Some of a source's images as a source: splits, samples, the few of a figure; and a source by given classes."""

from collections.abc import Iterable, Sequence

import numpy as np

from remask.images.sources.files import printable
from remask.images.sources.labels import check_trained, match, numbered
from remask.images.sources.opening import Source


class Subset:
    """The images of `source` with the given numbers, in that order. `remarks` are lines for the start of a run."""

    def __init__(self, source: Source, numbers: Sequence[int]) -> None:
        self.source, self.numbers = source, list(numbers)
        self.remarks: list[str] = [*getattr(source, "remarks", [])]
        self.name, self.classes, self.left_out = source.name, source.classes, source.left_out
        self.labels = None if source.labels is None else [source.labels[i] for i in self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, i: int) -> bytes | np.ndarray:
        return self.source.read(self.numbers[i])

    def where(self, i: int) -> str:
        return self.source.where(self.numbers[i])


def by_classes(source: Source, classes: Sequence[str], other: str, trained: Iterable[int] | None = None) -> Source:
    """The labelled source with its labels as numbers of `classes`, matched by name; the same source if they are.

    classes   those of the source that messages call `other`
    trained   numbers of the classes that `other` has images of; None: all
    Raises UserError for a class with images here that is not among `classes`, or that has no image in `other`.
    """
    assert source.labels is not None
    labels, names, where = source.labels, source.classes, printable(source.name)
    if names is None:  # a source from outside of this package
        labels, names = numbered(labels)
    places = match(names, classes, labels, where, other)
    matched = [places[label] for label in labels]
    if trained is not None:
        check_trained(classes, matched, trained, where, other)
    if names == list(classes):
        return source
    renumbered = Subset(source, range(len(source)))
    renumbered.labels, renumbered.classes = matched, list(classes)
    return renumbered
