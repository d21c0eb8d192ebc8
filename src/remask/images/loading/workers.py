"""A function applied to a list of tasks by worker processes; results come in the order of the tasks."""

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Generator
from torch.utils.data import DataLoader, Dataset

Result = TypeVar("Result")
Job = TypeVar("Job")

IMAGES_PER_TASK = 16
"""Images that a worker takes at a time."""


def map_batches(
    work: Callable[[Job], Result], tasks: Sequence[Job], workers: int, *, pin: bool = False
) -> Iterator[Result]:
    """work(task) for every task, in their order, by `workers` processes, or by this one for 0.

    `work` is pickled where processes are not forked. With `pin` its tensors arrive in page-locked memory.
    """
    return iter(
        DataLoader(
            _AsDataset(work),
            batch_size=None,
            sampler=tasks,
            num_workers=min(workers, len(tasks)),
            collate_fn=_as_it_is,
            worker_init_fn=_quiet,
            pin_memory=pin,
            generator=Generator(),  # else starting the workers draws from torch's global generator
        )
    )


def each(work: Callable[[int], Result], total: int, workers: int) -> Iterator[Result]:
    """work(0), work(1), … work(total - 1), by `workers` processes, or by this one for 0."""
    if workers:
        import torchvision.io  # noqa: F401  # takes seconds, which forked processes then do not spend again
    for results in map_batches(partial(_all, work), chunks(total, IMAGES_PER_TASK), workers):
        yield from results


def chunks(total: int, size: int) -> list[range]:
    """0 … total - 1 in ranges of `size`; the last may be shorter."""
    return [range(first, min(first + size, total)) for first in range(0, total, size)]


def _all(work: Callable[[int], Result], numbers: range) -> list[Result]:
    return [work(i) for i in numbers]


class _AsDataset(Dataset[Result], Generic[Job, Result]):
    """A function as a Dataset, for DataLoader: item `task` is work(task)."""

    def __init__(self, work: Callable[[Job], Result]) -> None:
        self._work = work

    def __getitem__(self, task: Job) -> Result:
        return self._work(task)


def _as_it_is(item: Any) -> Any:
    """Replaces DataLoader's collation: results stay as they are."""
    return item


def _quiet(worker: int) -> None:
    """Ignore Ctrl-C in a worker, since the main process handles it, and compute with one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
