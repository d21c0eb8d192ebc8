"""Rows of all processes in each of them, with gradients: for losses that compare the pictures of a whole batch.

Every process computes the same loss of all rows, weighted by its share of the batch. The gradient of a row is the sum
over the processes' losses; averaged as DDP and FSDP average gradients, that is the gradient of one process with the
whole batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Num
from torch import Tensor
from torch.utils._pytree import tree_map

from remask.training.distributed import ALONE, World, here
from remask.training.interfaces import Hook

T = TypeVar("T")

_TOGETHER = list[World]()
"""The world of the evaluation under way, in which all processes read."""


def all_rows(x: Num[Tensor, "*any"], dim: int = 0) -> Num[Tensor, "*more"]:
    """`x` of all processes, one after the other along `dim` in order of rank; `x` itself in a single process.

    Numbers of rows may differ between processes. Collective, in the backward pass too. On the "meta" device, where
    models are traced, nothing is exchanged.
    """
    return x if _alone(x) else _exchanged(x, dim)


def total(x: Num[Tensor, "*any"]) -> Num[Tensor, "*any"]:
    """`x` summed over all processes, with gradients; `x` itself in a single process. Collective, backward too."""
    return x if _alone(x) else _Summed.apply(x)


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


def unusable_of_all(loader: Any) -> None:
    """Tell a loader of images which ones the other processes cannot use. Raises TooManyBad. Collective."""
    for bad in here().gathered(loader.unusable):
        loader.learn(bad)


def bad_of_all(loader: Any) -> Hook:
    """Hook that shares the unusable images of all processes after an epoch, so that all stop if there are too many."""

    def hook(epoch: int) -> dict[str, float]:
        unusable_of_all(loader)
        return {}

    return hook


def _alone(x: Tensor) -> bool:
    return not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1 or x.device.type == "meta"


@torch.compiler.disable  # type: ignore[untyped-decorator]  # sizes are plain values, which no compiler traces
def _exchanged(x: Tensor, dim: int) -> Tensor:
    if x.dtype == torch.uint16 and x.ndim > 1:  # which neither gloo nor NCCL exchanges
        return _exchanged(x.view(torch.uint8), dim).view(torch.uint16)
    rows = x.movedim(dim, 0).contiguous()
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, len(rows))
    return _Gathered.apply(rows, counts).movedim(0, dim)


class _Summed(torch.autograd.Function):
    """The sum of all processes' tensors, of one shape. What each process's loss owes to it adds up, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _reduced(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _reduced(gradients[0])


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _reduced(x: Tensor) -> Tensor:
    summed = x.detach().contiguous().clone()
    dist.all_reduce(summed)
    return summed


class _Gathered(torch.autograd.Function):
    """[rows of all, ...] from this process's [counts[rank], ...]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        begin = sum(counts[: dist.get_rank()])
        ctx.own = slice(begin, begin + len(rows))
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # chunks that are exchanged have one size
        padded[: len(rows)] = rows
        chunks = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(chunks, padded)
        return torch.cat([chunk[:count] for chunk, count in zip(chunks, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.own], None


__all__ = ["all_rows", "bad_of_all", "in_one", "readers", "reading_together", "rows_of_all", "total", "unusable_of_all"]
