"""Rows and sums of all processes in each of them, with gradients: for losses that look at more than their own pictures.

Every process computes the same loss of all rows, weighted by its share of the batch. The gradient of a row is the sum
over the processes' losses; averaged as DDP and FSDP average gradients, that is the gradient of one process with the
whole batch.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Num
from torch import Tensor

from remask.training.distributed import here
from remask.training.interfaces import Hook


def all_rows(x: Num[Tensor, "*any"], dim: int = 0) -> Num[Tensor, "*more"]:
    """`x` of all processes, one after the other along `dim` in order of rank; `x` itself in a single process.

    Numbers of rows may differ between processes. Collective, in the backward pass too. On the "meta" device, where
    models are traced, nothing is exchanged.
    """
    return x if _alone(x) else _exchanged(x, dim)


def total(x: Num[Tensor, "*any"]) -> Num[Tensor, "*any"]:
    """`x` summed over all processes, with gradients; `x` itself in a single process. Collective, backward too."""
    return x if _alone(x) else _Summed.apply(x)


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


__all__ = ["all_rows", "bad_of_all", "total", "unusable_of_all"]
