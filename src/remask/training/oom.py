"""Micro-batches by available memory: retry with more after an out-of-memory error, search for the fewest that fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from remask.errors import UserError
from remask.files.system_errors import no_memory

Result = TypeVar("Result")

LESS = "lower optim.batch_size, set runtime.checkpointing=true, or share the batch among more processes"
"""What helps where a batch must not be cut."""


def across_batch(model: object) -> bool:
    """Whether a model's loss compares the pictures of a whole batch, which then is never cut into micro-batches."""
    return bool(getattr(model, "across_batch", False))


def oom_retry(model: nn.Module, attempt: Callable[[int], Result], micro_batches: int, most: int) -> tuple[Result, int]:
    """Call attempt(micro_batches), doubling the number when memory runs out; return (result, number that worked).

    attempt   forward and backward of a batch; its random draws must be the same in every call
    most      images of the batch, the largest number of micro-batches
    A failed attempt clears gradients and leaves BatchNorm buffers unchanged. Raises UserError if one image is too much,
    and at once for a loss across the batch, of which parts would be another loss.
    """
    while True:
        with undone_without_memory(model) as failed:
            return attempt(micro_batches), micro_batches
        assert failed
        if across_batch(model):
            raise UserError(
                f"memory runs out, and this loss compares the pictures of a batch, which parts would change: {LESS}"
            )
        if micro_batches >= most:
            raise UserError(
                "memory runs out even with one picture at a time; set runtime.checkpointing=true, or choose a smaller "
                "network or data.image_size"
            )
        micro_batches = min(2 * micro_batches, most)


def fewest_micro_batches(fits: Callable[[int], bool], most: int, across_batch: bool = False) -> int:
    """The smallest number of micro-batches, 1 to `most`, that fits; more of them never need more memory.

    across_batch   the loss compares the pictures of a batch: 1 is the only number
    Raises UserError if none fits.
    """
    if across_batch and not fits(1):
        raise UserError(
            f"a batch does not fit in memory, and this loss compares its pictures, which parts would change: {LESS}"
        )
    if across_batch:
        return 1
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


def fits_in_memory(
    model: nn.Module, optimizer: torch.optim.Optimizer, attempt: Callable[[int], object], micro_batches: int
) -> bool:
    """Whether attempt(micro_batches) fits in memory beside AdamW's state, allocated or not. Changes nothing."""
    trained = [p for p in model.parameters() if p.requires_grad and not optimizer.state.get(p)]
    with undone_without_memory(model, always=True) as failed:
        moments = [torch.empty_like(p) for p in trained for _ in range(2)]  # AdamW has two
        attempt(micro_batches)
        del moments
    return not failed


@contextmanager
def undone_without_memory(model: nn.Module, always: bool = False) -> Iterator[list[bool]]:
    """Yield a list; memory that runs out, of GPU or CPU, appends True, clears gradients, restores BatchNorm buffers.

    always   clear and restore after success too
    """
    means = [b for module in model.modules() if isinstance(module, _BatchNorm) for b in module.buffers()]
    before, failed = [mean.clone() for mean in means], list[bool]()
    try:
        yield failed
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError, a CPU's has no class
        if not no_memory(error):
            raise
        failed.append(True)
    if failed or always:
        for mean, old in zip(means, before, strict=True):
            mean.copy_(old)
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def retried_line(step: int, micro_batches: int) -> str:
    """What is said of a step that was done again."""
    return f"memory ran out in step {step}: done again, batches now in {micro_batches} parts"


__all__ = [
    "LESS",
    "across_batch",
    "fewest_micro_batches",
    "fits_in_memory",
    "oom_retry",
    "retried_line",
    "undone_without_memory",
]
