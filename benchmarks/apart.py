"""Entrants in processes of their own, of which one steps at a time.

A process has one heap, and one way to treat what is freed: remask keeps it (`keep_freed_memory`), other code gives it
back to the kernel and pays for fresh pages.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from typing import NamedTuple

import torch

from benchmarks.entrants import Entrant, Seconds
from remask.training.runtime import keep_freed_memory


class Maker(NamedTuple):
    """How a process makes its entrant: a function that can be sent there, and whether freed memory is kept."""

    make: Callable[[], Entrant]
    keep: bool


class Apart:
    """An `Entrant` elsewhere."""

    def __init__(self, pool: ProcessPoolExecutor, maker: Maker) -> None:
        self._pool, self._maker = pool, maker

    def warm(self) -> None:
        """Steps that are not counted: the optimizer makes its state, and a heap that is kept grows for two steps."""
        for _ in range(1 + self._maker.keep):
            self.seconds()

    def seconds(self) -> Seconds:
        return self._pool.submit(_seconds).result()

    def saved_bytes(self) -> int:
        return self._pool.submit(_saved_bytes).result()


@contextmanager
def apart(makers: Mapping[str, Maker]) -> Iterator[dict[str, Apart]]:
    """The entrants, made side by side; their processes end with the block."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.entrants"])
    with ExitStack() as stack:
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, context)) for name in makers}
        for made in [pool.submit(_make, makers[name]) for name, pool in pools.items()]:
            made.result()
        yield {name: Apart(pool, makers[name]) for name, pool in pools.items()}


def rounds(entrants: Mapping[str, Apart], count: int) -> list[dict[str, Seconds]]:
    """Interleaved: a step of each, again and again."""
    for entrant in entrants.values():
        entrant.warm()
    return [{name: entrant.seconds() for name, entrant in entrants.items()} for _ in range(count)]


_here: list[Entrant] = []
"""In a process of its own: the entrant."""


def _make(maker: Maker) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if maker.keep:
        keep_freed_memory()
    _here.append(maker.make())


def _seconds() -> Seconds:
    return _here[0].seconds()


def _saved_bytes() -> int:
    return _here[0].saved_bytes()


__all__ = ["Apart", "Maker", "apart", "rounds"]
