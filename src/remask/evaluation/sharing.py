"""An evaluation that all processes of torchrun run together: each reads its share of the images, all get every row."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor
from torch.utils._pytree import tree_map

from remask.training.distributed import ALONE, World, here
from remask.training.gathering import all_rows

T = TypeVar("T")

_TOGETHER = list[World]()
"""The world of the evaluation under way, in which all processes read."""


@contextmanager
def reading_together() -> Iterator[None]:
    """Context of an evaluation that all processes run, each with its share of every batch of images.

    `rows_of_all` and `in_one` are collective there. Elsewhere one process may evaluate alone.
    """
    _TOGETHER.append(here())
    try:
        yield
    finally:
        _TOGETHER.pop()


def readers() -> World:
    """The world of the processes that read together; ALONE outside of `reading_together`."""
    return _TOGETHER[-1] if _TOGETHER else ALONE


def rows_of_all(describe: Callable[[Tensor], T]) -> Callable[[Tensor], T]:
    """`describe`, rows [B, ...] of images, for the images of all processes in order of rank, while reading together.

    describe   returns a tensor or several, in a dict
    A process without an image of a batch gives a tensor [0, ...] whose other axes are those of an image.
    """

    def of_all(images: Tensor) -> T:
        if readers().alone:
            return describe(images)
        rows = describe(images if len(images) else images.new_zeros(1, *images.shape[1:]))
        found: T = tree_map(lambda own: all_rows(own[: len(images)]), rows)
        return found

    return of_all


def in_one(act: Callable[[], T]) -> T:
    """The result of `act`, which the main process computes for all while reading together; it reads alone in it."""

    def alone() -> T:
        _TOGETHER.append(ALONE)
        try:
            return act()
        finally:
            _TOGETHER.pop()

    return readers().first(alone)


__all__ = ["in_one", "readers", "reading_together", "rows_of_all"]
