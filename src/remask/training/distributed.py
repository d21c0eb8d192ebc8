"""Many processes as one run: who this one is, what they tell one another, which of them speaks when it goes wrong.

`torchrun` starts the processes and says in the environment who is who. What is exchanged here are plain values over
gloo, on the CPU, so that a GPU is never waited for; gradients and weights are `parallel`'s business. One process alone
is the special case in which every exchange returns what it was given.
"""

import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from remask.errors import UserError
from remask.training.launcher import count, place

T = TypeVar("T")

_JOINED = list["World"]()
"""What this process has been one of: empty until it is joined with others."""


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees it.

    rank, size      its number, and how many there are, over all machines
    local, locals   the same on its machine: the number of its GPU, and how many share processor and memory
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    locals: int = 1

    @classmethod
    def here(cls) -> "World":
        """What torchrun, or another launcher that sets the same variables, has started."""
        return cls(*place())

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def main(self) -> bool:
        """The process that writes, prints, probes and draws."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """Its part of `total` things in a row, cut as `Tensor.tensor_split` cuts them: sizes differ by one at most."""
        size, rest = divmod(total, self.size)
        begin = self.rank * size + min(self.rank, rest)
        return slice(begin, begin + size + (self.rank < rest))

    def first(self, act: Callable[[], T]) -> T:
        """What `act` returns in the main process; a UserError of it is everyone's. The others wait, and do not act."""
        if self.alone:
            return act()
        box: list[Any] = [None]
        if self.main:
            try:
                box = [(act(), None)]
            except UserError as error:
                box = [(None, str(error))]
        dist.broadcast_object_list(box, src=0)
        result, fault = box[0]
        if fault is not None:
            raise UserError(fault)
        return result

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process of each machine enters, then the others: what one fetches the others find."""
        if self.local:
            self.wait()
        yield
        if not self.local:
            self.wait()

    def wait(self) -> None:
        """Until all have come here."""
        self.any(False)

    def any(self, *flags: bool) -> list[bool]:
        """Each flag, raised by any of them."""
        return [value > 0 for value in self._reduced([float(flag) for flag in flags], dist.ReduceOp.MAX)]

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums by name; all have the same names, in the same order."""
        return dict(zip(values, self._reduced([*values.values()], dist.ReduceOp.SUM), strict=True))

    def highest(self, value: float) -> float:
        """The largest of all."""
        return self._reduced([value], dist.ReduceOp.MAX)[0]

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def _reduced(self, values: list[float], how: Any) -> list[float]:
        if self.alone or not values:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, how)
        return tensor.tolist()


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """The processes that torchrun started, joined while entered: gloo on the CPU, and nccl beside it where CUDA is."""
    world = World.here()
    if world.alone or dist.is_initialized():
        yield world
        return
    cuda = torch.cuda.is_available() and device.split(":")[0] in ("auto", "cuda")
    store, rank, size = next(rendezvous("env://"))
    # torchrun keeps one store over its restarts: without a prefix, the addresses of the dead would be found in it.
    start = f"remask/start-{count('TORCHELASTIC_RESTART_COUNT')}"
    store = dist.PrefixStore(start, store)  # type: ignore[attr-defined]
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank, world_size=size)
    _JOINED.append(world)
    yield world
    world.wait()
    dist.destroy_process_group()  # not after an error: it could wait for those that are gone
    gc.collect()  # DistributedDataParallel, kept by reference cycles, keeps gloo's threads alive: see `leave`


def launched() -> bool:
    """Whether torchrun started this process, be it alone."""
    return bool(os.environ.get("TORCHELASTIC_RUN_ID"))


def ended(code: int) -> tuple[bool, int]:
    """Whether this process, which ends with `code`, is to say why, and the code to end with: those of the first one.

    Before they have joined, all find the same fault, and rank 0 says it. After that the first to fail says why; the
    others fail because it is gone. All end together, or torchrun would end the slower ones, with a code of its own; one
    that is gone without a word is waited for no longer than a second.
    """
    world = World.here()
    if world.alone:
        return True, code
    if not dist.is_initialized():
        return world.main, code
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from torchrun, which sees another gone: this one ends by itself
    if code == 1:  # perhaps only because another has failed, which says so about now
        time.sleep(1)
    own = f"{world.rank}:{code}"
    try:
        store, until = dist.distributed_c10d._get_default_store(), time.monotonic() + 1
        said = store.compare_set("remask/ended", "", own).decode()
        store.add("remask/ending", 1)
        while store.add("remask/ending", 0) < world.size and time.monotonic() < until:
            time.sleep(0.02)
    except RuntimeError:  # the machine that kept the store is gone
        said = own
    return said == own, int(said.partition(":")[2])


def leave(code: int) -> NoReturn:
    """Exit, and at once where this process was joined with others: all that it writes must be closed.

    Gloo's threads outlive the process group (DTensor's caches keep it), or the failure of another process. One that
    waits for the interpreter's lock while the interpreter ends is unwound through compiled code, which aborts.
    """
    if not _JOINED:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


ALONE = World()

__all__ = ["ALONE", "World", "ended", "joined", "launched", "leave"]
