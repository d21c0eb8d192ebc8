"""Some work for every picture of a source, by worker processes, handed over in the source's order."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from torch import Generator
from torch.utils.data import DataLoader, Dataset

from remask.images.loading.batch_maker import as_it_is, quiet

Result = TypeVar("Result")

TOGETHER = 16
"""Pictures that a worker takes at a time."""


def each(work: Callable[[int], Result], total: int, workers: int) -> Iterator[Result]:
    """work(0), work(1), … work(total - 1), by so many processes, or here for 0. `work` is pickled where they are not
    forked."""
    if workers:
        import torchvision.io  # noqa: F401  # seconds that each process would need anew
    chunks = DataLoader(
        _Chunks(work, total), batch_size=None, num_workers=min(workers, -(-total // TOGETHER)), collate_fn=as_it_is,
        worker_init_fn=quiet, generator=Generator(),
    )  # fmt: skip
    for chunk in chunks:
        yield from chunk


class _Chunks(Dataset[list[Result]], Generic[Result]):
    def __init__(self, work: Callable[[int], Result], total: int) -> None:
        self._work, self._total = work, total

    def __len__(self) -> int:
        return -(-self._total // TOGETHER)

    def __getitem__(self, chunk: int) -> list[Result]:
        if not 0 <= chunk < len(self):
            raise IndexError(chunk)
        return [self._work(i) for i in range(chunk * TOGETHER, min((chunk + 1) * TOGETHER, self._total))]
