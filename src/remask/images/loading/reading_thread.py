"""A function applied to a list of tasks by one thread beside the training; results come in the order of the tasks."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

from remask.errors import MachineError
from remask.images.loading.workers import PATIENCE

Result = TypeVar("Result")
Job = TypeVar("Job")


def in_thread(
    work: Callable[[Job], Result], tasks: Sequence[Job], *, ahead: int = 2, patience: float = PATIENCE
) -> Iterator[Result]:
    """work(task) for every task, in their order, by one thread that works up to `ahead` tasks ahead.

    patience   seconds to wait for a result; 0: for ever
    Raises MachineError for a result that does not come, and whatever `work` raises.
    """
    jobs, pending = SimpleQueue[tuple[Future[Result], Job] | None](), deque[Future[Result]]()
    # a daemon, unlike the threads of an executor: Python does not wait at its end for one that is stuck
    thread = Thread(target=_work_off, args=(work, jobs), name="remask-images", daemon=True)
    thread.start()
    stuck = False
    try:
        for task in tasks:
            pending.append(Future())
            jobs.put((pending[-1], task))
            if len(pending) > ahead:
                yield pending.popleft().result(patience or None)
        while pending:
            yield pending.popleft().result(patience or None)
    except (KeyboardInterrupt, TimeoutError) as error:
        stuck = True
        if isinstance(error, TimeoutError) and not error.args:  # the wait's own, not one of the file system
            raise MachineError(
                f"reading pictures has given nothing for {patience:g} s: the disk does not answer; see that it can be "
                "read, or raise runtime.patience"
            ) from None
        raise
    finally:
        for future in pending:
            future.cancel()
        jobs.put(None)
        if not stuck:  # what it works with is not for two threads at once
            thread.join()


def _work_off(work: Callable[[Job], Result], jobs: "SimpleQueue[tuple[Future[Result], Job] | None]") -> None:
    while (job := jobs.get()) is not None:
        future, task = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(task))
            except BaseException as error:  # raised where the result is waited for
                future.set_exception(error)
