"""Random numbers of layers, drawn in every process for the whole batch, of which each takes those of its own rows.

So dropout and drop path are in several processes what they are in one: all draw the same from the same stream. In a
single process nothing is changed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from remask.training.distributed import World

_ROWS = list[tuple[slice, int]]()
"""(rows of this process, rows of all) of the micro-batch under way; empty in a single process."""


@contextmanager
def micro_batch(world: World, batch: int, chunks: int, number: int) -> Iterator[None]:
    """Context of the forward and backward pass of micro-batch `number` of `chunks`, of a batch of all processes."""
    if world.alone:
        yield
        return
    shares = [World(rank, world.size).share(batch) for rank in range(world.size)]
    counts = [(share.stop - share.start) // chunks + (number < (share.stop - share.start) % chunks) for share in shares]
    begin = sum(counts[: world.rank])
    _ROWS.append((slice(begin, begin + counts[world.rank]), sum(counts)))
    try:
        yield
    finally:
        _ROWS.pop()


def of_rows(rows: int, draw: Callable[[int], Tensor]) -> Tensor:
    """The own rows of draw(rows of all) [rows of all, ...], with one row for each picture, or for each in every view.

    rows   that this process has, views first: [views · pictures]
    """
    if not _ROWS:
        return draw(rows)
    own, total = _ROWS[-1]
    views = rows // max(own.stop - own.start, 1)
    return draw(views * total).unflatten(0, (views, total))[:, own].flatten(0, 1)


def with_global_draws(model: nn.Module) -> nn.Module:
    """The model, each layer in it that draws random numbers exchanged for one that draws for the whole batch."""
    for layer in model.modules():
        if kind := _kinds().get(type(layer)):
            layer.__class__ = kind
    return model


@cache
def _kinds() -> dict[type[Any], type[Any]]:
    from timm.layers import DropPath

    class GlobalBatchDropPath(DropPath):  # type: ignore[misc]  # timm has no types
        """timm's drop path."""

        def forward(self, x: Tensor) -> Tensor:
            if not self.training or not self.drop_prob:
                return x
            keep, ones = 1 - self.drop_prob, (1,) * (x.ndim - 1)
            mask = of_rows(len(x), lambda rows: x.new_empty((rows, *ones)).bernoulli_(keep))
            return x * (mask.div_(keep) if keep and self.scale_by_keep else mask)

    return {DropPath: GlobalBatchDropPath, nn.Dropout: GlobalBatchDropout, nn.Dropout2d: GlobalBatchDropout2d}


class GlobalBatchDropout(nn.Dropout):
    """Dropout of single values."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1:
            return super().forward(input)

        def draw(rows: int) -> Tensor:
            # in the order in which torch fills what is like the input
            like = torch.empty_like(input[:1].expand(rows, *input.shape[1:]), memory_format=_memory(input))
            return like.bernoulli_(1 - self.p)

        return input * of_rows(len(input), draw).div_(1 - self.p)


class GlobalBatchDropout2d(nn.Dropout2d):
    """Dropout of channels."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1:
            return super().forward(input)
        size = (input.shape[1], 1, 1)
        noise = of_rows(len(input), lambda rows: input.new_empty((rows, *size)).bernoulli_(1 - self.p))
        return input * noise.div_(1 - self.p)


def _memory(x: Tensor) -> torch.memory_format:
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


__all__ = ["micro_batch", "of_rows", "with_global_draws"]
