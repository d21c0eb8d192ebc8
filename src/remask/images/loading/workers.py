"""A function applied to a list of tasks by worker processes; results come in the order of the tasks.

A worker that dies or gives nothing for too long ends the work with one line. What a worker raises is raised here.
"""

import atexit
import contextlib
import math
import pickle
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from threading import Event, Thread
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakSet

import torch
from torch import Generator
from torch.utils.data import DataLoader, Dataset, get_worker_info

from remask.errors import MachineError, first_line
from remask.files.system_errors import SHARED_MEMORY

Result = TypeVar("Result")
Job = TypeVar("Job")

IMAGES_PER_TASK = 16
"""Images that a worker takes at a time."""

PATIENCE = 1800.0
"""Seconds without a result, by default, after which what is waited for counts as stuck."""

TICK = 1.0
"""Seconds between two looks at the workers while nothing comes."""

_LIVE = WeakSet[Any]()
"""Workers that may still run."""

_BY_SIGNAL = {
    signal.SIGKILL: "the system kills what takes too much memory: lower runtime.workers (or --workers), or use fewer "
    "other programs",
    signal.SIGBUS: SHARED_MEMORY,
    signal.SIGSEGV: "a decoder crashed: remask data check finds the picture with --workers 0",
}
"""What is likely, and what to do, by the signal that ended a worker."""


def map_batches(
    work: Callable[[Job], Result],
    tasks: Sequence[Job],
    workers: int,
    *,
    pin: bool = False,
    patience: float = PATIENCE,
) -> Iterator[Result]:
    """work(task) for every task, in their order, by `workers` processes, or by this one for 0.

    `work` is pickled where processes are not forked. With `pin` its tensors arrive in page-locked memory.
    patience   seconds to wait for a result; 0: for ever
    Raises MachineError for a worker that died or is stuck, and whatever `work` raises.
    """
    workers = min(workers, len(tasks))
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # --workers is the user's choice
    loader = DataLoader(
        _AsDataset(work),
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_quiet,
        pin_memory=pin,
        timeout=TICK if workers else 0,
        generator=Generator(),  # else starting the workers draws from torch's global generator
    )
    return _watched(loader, patience) if workers else iter(loader)


def each(work: Callable[[int], Result], total: int, workers: int) -> Iterator[Result]:
    """work(0), work(1), … work(total - 1), by `workers` processes, or by this one for 0."""
    if workers:
        import torchvision.io  # noqa: F401  # takes seconds, which forked processes then do not spend again
    for results in map_batches(partial(_all, work), chunks(total, IMAGES_PER_TASK), workers):
        yield from results


def chunks(total: int, size: int) -> list[range]:
    """0 … total - 1 in ranges of `size`; the last may be shorter."""
    return [range(first, min(first + size, total)) for first in range(0, total, size)]


def _watched(loader: DataLoader[Any], patience: float) -> Iterator[Any]:
    """The loader's results. Workers are killed when the wait for one fails, since one that is stopped ends no other
    way and Python would wait for it at its own end."""
    results = _started(loader)
    processes = [*results._workers]
    _LIVE.update(processes)
    with _Watchdog(processes, patience) as watchdog:
        for number in range(len(loader)):
            try:
                with watchdog.waiting(number):
                    result = _next(results, processes)
            except BaseException:
                _kill(processes)
                raise
            if isinstance(result, _Failed):
                raise result.error
            yield result


class _Watchdog:
    """A thread that kills the workers when a result has been waited for too long: the wait may stand in a read from a
    worker that is stopped, which knows no time limit and fails only when the worker dies."""

    def __init__(self, processes: Sequence[Any], patience: float) -> None:
        self._processes, self._patience = processes, patience
        self._since, self._stuck = math.inf, False
        self._over = Event()

    def __enter__(self) -> "_Watchdog":
        if self._patience:
            Thread(target=self._watch, name="remask-watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(TICK):
            if time.monotonic() - self._since > self._patience:
                self._stuck = True
                _kill(self._processes)

    @contextlib.contextmanager
    def waiting(self, number: int) -> Iterator[None]:
        """Context of the wait for task `number`."""
        self._since = time.monotonic()
        try:
            yield
        except Exception as error:
            if not self._stuck:
                raise
            worker = number % len(self._processes)  # tasks are dealt out in turn
            raise MachineError(
                f"loader worker {worker} (process {self._processes[worker].pid}) has given nothing for "
                f"{self._patience:g} s: it is stopped, or its disk does not answer; see that it can be read, or raise "
                "runtime.patience"
            ) from error
        finally:
            self._since = math.inf


def _kill(processes: Iterable[Any]) -> None:
    for process in processes:
        with contextlib.suppress(ValueError):  # closed already
            process.kill()


def _kill_all() -> None:
    _kill(_LIVE)


atexit.register(_kill_all)  # runs before multiprocessing's own, which waits for ever for a worker that is stopped


def _started(loader: DataLoader[Any]) -> Any:
    """The loader's iterator, without torch's handler of SIGCHLD, which raises wherever the program happens to be, in
    the middle of a step or of writing a file. A dead worker is found when its result is waited for."""
    before = _handler()
    results = iter(loader)
    if _handler() is not before:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return results


def _handler() -> Any:
    return signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None


def _next(results: Any, processes: Sequence[Any]) -> Any:
    """The next result. torch gives up after each TICK and may be asked again: it has lost nothing."""
    while True:
        try:
            return next(results)
        except (RuntimeError, OSError, EOFError) as error:  # of a connection to a worker too
            waits = first_line(error).startswith("DataLoader timed out")
            if not waits:
                time.sleep(0.1)  # a connection ends before its process
            if dead := [process for process in processes if not process.is_alive() and process.exitcode]:
                raise MachineError(_of_dead(dead[0])) from error
            if not waits:
                raise


def _of_dead(process: Any) -> str:
    code = process.exitcode
    if code > 0:
        return f"a loader worker (process {process.pid}) ended with exit code {code}; give the command again"
    ended = signal.Signals(-code)
    cure = _BY_SIGNAL.get(ended, "something else ended it; give the command again")
    return f"a loader worker (process {process.pid}) was ended by {ended.name}: {cure}"


def _all(work: Callable[[int], Result], numbers: range) -> list[Result]:
    return [work(i) for i in numbers]


class _Failed(NamedTuple):
    """What a worker raised."""

    error: Exception


class _AsDataset(Dataset[Any], Generic[Job, Result]):
    """A function as a Dataset, for DataLoader: item `task` is work(task), or in a worker `_Failed`."""

    def __init__(self, work: Callable[[Job], Result]) -> None:
        self._work = work

    def __getitem__(self, task: Job) -> Result | _Failed:
        if get_worker_info() is None:
            return self._work(task)
        try:
            return self._work(task)
        except Exception as error:  # raised again in the main process, without torch's text of 20 lines
            error.add_note(f"in a loader worker:\n{traceback.format_exc()}")
            return _Failed(_portable(error))


def _portable(error: Exception) -> Exception:
    """The error, if it can be sent to another process; else its name and first line."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its own methods raise
        return RuntimeError(f"{type(error).__name__}: {first_line(error)}")
    return error


def _as_it_is(item: Any) -> Any:
    """Replaces DataLoader's collation: results stay as they are."""
    return item


def _quiet(worker: int) -> None:
    """Ignore Ctrl-C in a worker, since the main process handles it, and compute with one thread.

    So is the warning of a time limit, SIGUSR1, which SLURM sends to all processes of a step.

    The other signals end it, without what the main process does at SIGTERM and what torch prints: the main process
    tells of it.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGBUS", "SIGSEGV", "SIGFPE"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    torch.set_num_threads(1)
