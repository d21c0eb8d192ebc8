"""A batch in as many parts as memory asks for: what to do when it runs out, and how to find the fewest beforehand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from remask.errors import UserError

Result = TypeVar("Result")


def fitted(model: nn.Module, attempt: Callable[[int], Result], parts: int, most: int) -> tuple[Result, int]:
    """What `attempt(parts)` returns, and the parts with which it did: twice as many whenever memory runs out.

    attempt   forward and backward of a whole batch; its random draws must be the same in every call
    most      pictures of the batch, the largest number of parts
    A failed attempt leaves no gradient and no running mean behind. Raises UserError where a single picture is too much.
    """
    while True:
        with undone_without_memory(model) as failed:
            return attempt(parts), parts
        assert failed
        if parts >= most:
            raise UserError(
                "memory runs out even with one picture at a time; set runtime.checkpointing=true, or choose a smaller "
                "network or data.image_size"
            )
        parts = min(2 * parts, most)


def fewest(fits: Callable[[int], bool], most: int) -> int:
    """The smallest number of parts, 1 to `most`, that fits, where more parts never need more memory.

    Raises UserError where none does.
    """
    low, high = 0, 1  # `low` does not fit
    while not fits(high):
        if high == most:
            raise UserError(
                "a batch does not fit in memory even with one picture at a time; set runtime.checkpointing=true, or "
                "choose a smaller network or data.image_size"
            )
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def attempted(model: nn.Module, optimizer: torch.optim.Optimizer, attempt: Callable[[int], object], parts: int) -> bool:
    """Whether an attempt fits beside the optimizer's state, which may not be there yet. Nothing is changed by it."""
    trained = [p for p in model.parameters() if p.requires_grad and not optimizer.state.get(p)]
    with undone_without_memory(model, always=True) as failed:
        moments = [torch.empty_like(p) for p in trained for _ in range(2)]  # AdamW has two
        attempt(parts)
        del moments
    return not failed


@contextmanager
def undone_without_memory(model: nn.Module, always: bool = False) -> Iterator[list[bool]]:
    """Swallow an OutOfMemoryError: the list then holds something, gradients are gone and running means as before.

    always   undo also what did not fail
    """
    means = [b for part in model.modules() if isinstance(part, _BatchNorm) for b in part.buffers()]
    before, failed = [mean.clone() for mean in means], list[bool]()
    try:
        yield failed
    except torch.OutOfMemoryError:
        failed.append(True)
    if failed or always:
        for mean, old in zip(means, before, strict=True):
            mean.copy_(old)
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


__all__ = ["attempted", "fewest", "fitted", "undone_without_memory"]
