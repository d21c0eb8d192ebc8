"""What the trainer asks of others: random draws, batches, hooks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Generator


class Draws(Protocol):
    """The random draws of a step, for this rank's rows; `split` cuts them like `Tensor.tensor_split`."""

    def split(self, chunks: int) -> Sequence[Any]: ...


Drawer = Callable[[Any, Generator], Draws]
"""(batch, generator) -> the random draws of a step, and the labels if there are any."""


class Batches(Protocol):
    """Batches of an epoch, from the batch `start` on; `len` is batches per epoch."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


Hook = Callable[[int], Mapping[str, float]]
"""Called with the number of epochs done, in every process; returns values to log. Its time is not in the cost."""

__all__ = ["Batches", "Drawer", "Draws", "Hook"]
