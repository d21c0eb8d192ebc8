"""Some pictures of a source, as a source: splits, samples, the few that a figure shows."""

from collections.abc import Sequence

import numpy as np

from remask.images.sources import Source


class Subset:
    """The pictures of `source` with the given numbers, in that order."""

    def __init__(self, source: Source, numbers: Sequence[int]) -> None:
        self.source, self.numbers = source, list(numbers)
        self.name, self.classes, self.left_out = source.name, source.classes, source.left_out
        self.labels = None if source.labels is None else [source.labels[i] for i in self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, i: int) -> bytes | np.ndarray:
        return self.source.read(self.numbers[i])

    def where(self, i: int) -> str:
        return self.source.where(self.numbers[i])
