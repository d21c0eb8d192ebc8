"""Several processes as one run: rank and size, exchange of plain values, and which process reports an error.

`torchrun` starts the processes and sets rank and size in the environment. This module exchanges plain values over gloo
on the CPU, which never waits for a GPU; `sharding` exchanges gradients and weights. In a single process every exchange
returns its input.
"""

import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from remask.errors import UserError
from remask.files.system_errors import system_line
from remask.training.launcher import place
from remask.training.meeting import common_name
from remask.training.pulse import Pulse, from_exchange, ignore_sigterm

T = TypeVar("T")

_JOINED = list["World"]()
"""The worlds that this process joined; empty in a single process."""

_PULSES = list[Pulse]()
"""Its signs of life in them."""

FOR_EVER = 10 * 365 * 86400.0
"""Seconds."""


@dataclass(frozen=True)
class World:
    """Rank of this process and number of processes.

    rank, size      over all machines
    local, locals   on this machine; `local` is also the index of this process's GPU
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    locals: int = 1

    @classmethod
    def here(cls) -> "World":
        """The world by the environment variables that torchrun, or a compatible launcher, sets."""
        return cls(*place())

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes files, prints, probes and plots."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """This rank's slice of `total` items, split as by `Tensor.tensor_split`: sizes differ by at most one."""
        size, rest = divmod(total, self.size)
        begin = self.rank * size + min(self.rank, rest)
        return slice(begin, begin + size + (self.rank < rest))

    def first(self, act: Callable[[], T]) -> T:
        """Result of `act`, called on rank 0 only and broadcast; its UserError is raised on all ranks. Collective.

        An error of the machine is a UserError then.
        """
        if self.alone:
            return act()
        message: list[Any] = [None]
        if self.main:
            try:
                message = [(act(), None)]
            except (UserError, OSError) as error:
                if (line := str(error) if isinstance(error, UserError) else system_line(error)) is None:
                    raise
                message = [(None, line)]
        dist.broadcast_object_list(message, src=0)
        result, error_text = message[0]
        if error_text is not None:
            raise UserError(error_text)
        return result

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Context that rank 0 of each machine enters first, so that the others find what it downloaded. Collective."""
        if self.local:
            self.wait()
        yield
        if not self.local:
            self.wait()

    def at_step(self, step: int) -> None:
        """Note the step that this process has done, for what the others say if it dies."""
        if _PULSES:
            _PULSES[-1].step = step

    def wait(self) -> None:
        """Barrier."""
        self.any(False)

    def any(self, *flags: bool) -> list[bool]:
        """Logical OR of each flag over all ranks. Collective."""
        return [value > 0 for value in self._reduced([float(flag) for flag in flags], dist.ReduceOp.MAX)]

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum of each value over all ranks, which pass the same names in the same order. Collective."""
        return dict(zip(values, self._reduced([*values.values()], dist.ReduceOp.SUM), strict=True))

    def highest(self, value: float) -> float:
        """Maximum over all ranks. Collective."""
        return self._reduced([value], dist.ReduceOp.MAX)[0]

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks, in order of rank. Collective."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def _reduced(self, values: list[float], operation: Any) -> list[float]:
        if self.alone or not values:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()


@contextlib.contextmanager
def joined(device: str = "auto", patience: float = 0.0) -> Iterator[World]:
    """Context with the process group of torchrun's processes: gloo for the CPU, and nccl if CUDA is available.

    patience   seconds that a process is waited for; 0: for ever
    Raises MachineError, which names rank and step, where another process died or does not answer.
    """
    world = World.here()
    if world.alone or dist.is_initialized():
        yield world
        return
    cuda = torch.cuda.is_available() and device.split(":")[0] in ("auto", "cuda")
    store, rank, size = next(rendezvous("env://"))
    # torchrun keeps one store over its restarts: the prefix hides the addresses of processes that died before
    store = dist.PrefixStore(common_name(store, rank, size), store)  # type: ignore[attr-defined]
    backends, limit = "cpu:gloo,cuda:nccl" if cuda else "gloo", timedelta(seconds=patience or FOR_EVER)
    dist.init_process_group(backends, store=store, rank=rank, world_size=size, timeout=limit)
    _JOINED.append(world)
    pulse = Pulse(store, rank, size, patience if cuda else 0.0)
    _PULSES.append(pulse)
    try:
        yield world
        world.wait()
    except RuntimeError as error:
        if not from_exchange(error):
            raise
        ignore_sigterm()
        raise pulse.lost(error) from error
    pulse.end()
    dist.destroy_process_group()  # not after an error: it could wait for processes that died
    gc.collect()  # DistributedDataParallel, kept by reference cycles, keeps gloo's threads alive: see `leave`


def joined_world() -> World | None:
    """The world that this process has joined, and has not left; None in a single process."""
    return _JOINED[-1] if _JOINED and dist.is_initialized() else None


def here() -> World:
    """The world that this process has joined; ALONE in a single process."""
    return joined_world() or ALONE


def launched() -> bool:
    """Whether torchrun started this process, even as the only one."""
    return bool(os.environ.get("TORCHELASTIC_RUN_ID"))


def ended(code: int) -> tuple[bool, int]:
    """(Whether this process, failing with `code`, prints the error, the exit code of the run).

    Before the processes join, all fail alike, and rank 0 prints. Afterwards the first process to fail prints and sets
    the exit code; the others fail because it died. All exit together, for torchrun kills the slower ones with its own
    exit code; a process that died silently delays the exit by a second at most.
    """
    world = World.here()
    if world.alone:
        return True, code
    if not dist.is_initialized():
        return world.main, code
    ignore_sigterm()
    if code == 1:  # perhaps only because another process failed: let that one be first
        time.sleep(1)
    own_entry = f"{world.rank}:{code}"
    try:
        store, deadline = dist.distributed_c10d._get_default_store(), time.monotonic() + 1
        first_entry = store.compare_set("remask/ended", "", own_entry).decode()
        store.add("remask/ending", 1)
        while store.add("remask/ending", 0) < world.size and time.monotonic() < deadline:
            time.sleep(0.02)
    except RuntimeError:  # the machine that hosts the store died
        first_entry = own_entry
    return first_entry == own_entry, int(first_entry.partition(":")[2])


def leave(code: int) -> NoReturn:
    """Exit; with `os._exit` if this process joined others, so the caller must have closed its files.

    Gloo's threads outlive the process group (DTensor's caches hold it), or the failure of another process. A thread
    that waits for the GIL while the interpreter shuts down is unwound through compiled code, which aborts.
    """
    if not _JOINED:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


ALONE = World()

__all__ = ["ALONE", "World", "ended", "here", "joined", "joined_world", "launched", "leave"]
