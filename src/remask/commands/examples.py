"""Pictures beside a probe: what there is to tell apart, and the nearest training pictures of some test pictures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from remask.commands.subjects import Subject
from remask.evaluation.figures.classes import MOST, Shown, classes_figure
from remask.evaluation.figures.neighbours import Near, Query, agreement, choose, nearest, neighbours_figure
from remask.evaluation.figures.sheet import rgb
from remask.evaluation.figures.tsne import choose_images
from remask.evaluation.probing.fast_probe import Split
from remask.images.loading.loader import Batch
from remask.images.sources.opening import Source
from remask.images.sources.subset import Subset

ROWS, NEAR, EACH = 8, 5, 4
"""Test pictures that are asked, training pictures near each, and training pictures of a class."""
RANKED = 2000
"""Test pictures, at most, over which the neighbours' classes are counted."""
GROUPS = {"top1": "trained features", "pixels": "raw pixels"}


class Probed(NamedTuple):
    """A source and the numbers of the pictures whose features were taken, in their order."""

    source: Source
    numbers: list[int]

    def recorded(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, whose pictures' numbers are kept."""
        for batch in batches:
            self.numbers.extend(batch.index.tolist())
            yield batch

    def name(self, row: int) -> str:
        """The class of the picture with the features of a row."""
        labels, classes = self.source.labels, self.source.classes
        assert labels is not None
        label = labels[self.numbers[row]]
        return classes[label] if classes else str(label)


def neighbours(subject: Subject, train: Probed, test: Probed, splits: tuple[Split, Split], seed: int) -> bytes:
    """A PNG of random test pictures with their nearest training pictures, by trained features and by raw pixels."""
    known, tested = splits
    some = torch.randperm(len(tested.y), generator=torch.Generator().manual_seed(seed))[:RANKED]
    rows, k = choose(tested.y, ROWS, seed), min(NEAR, len(known.y))
    ranked = {name: nearest(known.x[name], tested.x[name][some], k) for name in GROUPS}
    found = {name: nearest(known.x[name], tested.x[name][rows], k) for name in GROUPS}
    images = _images(subject, train, [row for near in found.values() for row in near.flatten().tolist()])
    queries = _images(subject, test, rows.tolist())
    shown = []
    for place, row in enumerate(rows.tolist()):
        near = [found[name][place].tolist() for name in GROUPS]
        groups = [Near([images[one] for one in ids], [train.name(one) for one in ids]) for ids in near]
        shown.append(Query(queries[row], test.name(row), groups))
    titles = [
        f"nearest training pictures by {words}\n{agreement(ranked[name], known.y, tested.y[some]):.0f} % are of the "
        "test picture's class"
        for name, words in GROUPS.items()
    ]
    counted = f"Percent: over the {k} nearest of {len(some):,} test pictures. The rows are random."
    return neighbours_figure(shown, titles, [f"Framed: of the test picture's class. {counted}"])


def classes(subject: Subject, train: Probed, seed: int) -> bytes:
    """A PNG of random training pictures of each class, or of some of many, and of what the source is cut from."""
    usable = Subset(train.source, train.numbers)
    labels = usable.labels
    assert labels is not None
    chosen = choose_images(labels, MOST, EACH, seed)
    images = _images(subject, train, chosen)
    portrait = getattr(train.source, "portrait", None)
    shown = []
    for label in sorted({labels[row] for row in chosen}):
        rows = [row for row in chosen if labels[row] == label]
        photograph = torch.from_numpy(portrait(label)) if portrait else None
        shown.append(Shown(train.name(rows[0]), [images[row] for row in rows], photograph))
    return classes_figure(shown, _notes(train.source, len(shown), len(set(labels))))


def _notes(source: Source, count: int, total: int) -> list[str]:
    """What the picture of classes does not say itself."""
    some = f"{count} of {total} classes, at random. " if count < total else ""
    below = "Below each, training" if hasattr(source, "portrait") else f"{some}Training"
    return [*getattr(source, "captions", []), f"{below} pictures of the class, at random, as the network gets them."]


def _images(subject: Subject, probed: Probed, rows: Sequence[int]) -> Mapping[int, UInt8[Tensor, "Y X 3"]]:
    """The pictures of some rows, by row, as the network sees them."""
    wanted = sorted(set(rows))
    some: Any = Subset(probed.source, [probed.numbers[row] for row in wanted])
    normalise = subject.backbone.normalise
    found = [
        rgb(image, 1)
        for batch in subject.batches(some)
        for image in normalise.shown(batch.images.to(normalise.shift.device)).cpu()
    ]
    return dict(zip(wanted, found, strict=True))


__all__ = ["Probed", "classes", "neighbours"]
