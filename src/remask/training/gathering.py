"""Rows of all processes in each of them, with gradients: for losses that compare the pictures of a whole batch.

Every process computes the same loss of all rows, weighted by its share of the batch. The gradient of a row is the sum
over the processes' losses; averaged as DDP and FSDP average gradients, that is the gradient of one process with the
whole batch.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Num
from torch import Tensor


def all_rows(x: Num[Tensor, "*any"], dim: int = 0) -> Num[Tensor, "*more"]:
    """`x` of all processes, one after the other along `dim` in order of rank; `x` itself in a single process.

    Numbers of rows may differ between processes. Collective, in the backward pass too. On the "meta" device, where
    models are traced, nothing is exchanged.
    """
    alone = not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1
    return x if alone or x.device.type == "meta" else _exchanged(x, dim)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # sizes are plain values, which no compiler traces
def _exchanged(x: Tensor, dim: int) -> Tensor:
    rows = x.movedim(dim, 0).contiguous()
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, len(rows))
    return _Gathered.apply(rows, counts).movedim(0, dim)


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


__all__ = ["all_rows"]
