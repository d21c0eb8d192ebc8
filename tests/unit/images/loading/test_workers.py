"""Workers and the reading thread: results in order, one line for what dies, is stuck or raises."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from remask.errors import MachineError, UserError
from remask.images.loading import workers
from remask.images.loading.reading_thread import in_thread
from remask.images.loading.workers import each, map_batches


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "TICK", 0.1)


def square(i: int) -> torch.Tensor:
    return torch.tensor(i * i)


def at(number: int, act: Callable[[], Any], i: int) -> int:
    """act() for one task, in the worker."""
    if i == number:
        act()
    return i


def forever() -> None:
    time.sleep(600)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_come_in_order(count: int) -> None:
    assert [int(found) for found in map_batches(square, range(20), count)] == [i * i for i in range(20)]
    assert [int(found) for found in each(square, 33, count)] == [i * i for i in range(33)]
    assert list(map_batches(square, [], count)) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGBUS])
def test_a_worker_that_dies_is_one_line(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    """Within seconds, with its cause; torch says nothing beside, and its handler of SIGCHLD is not left behind."""
    before = signal.getsignal(signal.SIGCHLD)
    began = time.monotonic()
    with pytest.raises(MachineError, match=rf"a loader worker \(process \d+\) was ended by {number.name}: ") as found:
        list(map_batches(partial(at, 3, lambda: os.kill(os.getpid(), number)), range(50), 2))
    assert time.monotonic() - began < 10
    assert "\n" not in str(found.value)
    assert capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGCHLD) is before
    assert ("memory" in str(found.value)) == (number in (signal.SIGKILL, signal.SIGBUS))


def test_a_death_is_not_raised_in_the_middle_of_something_else() -> None:
    """torch's handler of SIGCHLD would raise wherever the program is; here it is found at the next result."""
    results = map_batches(square, range(50), 2)
    next(results)
    os.kill(int(multiprocessing.active_children()[0].pid or 0), signal.SIGKILL)
    time.sleep(0.5)
    with pytest.raises(MachineError, match="was ended by SIGKILL"):
        list(results)


def test_a_stopped_worker_is_named_after_the_time_stated_and_killed() -> None:
    began = time.monotonic()
    with pytest.raises(MachineError, match=r"loader worker 1 \(process \d+\) has given nothing for 1 s: ") as found:
        list(map_batches(partial(at, 3, lambda: os.kill(os.getpid(), signal.SIGSTOP)), range(50), 2, patience=1))
    assert 1 <= time.monotonic() - began < 8
    assert "raise runtime.patience" in str(found.value)
    for process in multiprocessing.active_children():
        process.join(5)
    assert not multiprocessing.active_children(), "a stopped worker outlives the work"


def test_workers_that_stop_while_their_results_are_read() -> None:
    """torch then waits for a tensor's file in a read without a time limit."""
    results = map_batches(square, range(500), 2, patience=1)
    next(results)
    for process in multiprocessing.active_children():
        os.kill(int(process.pid or 0), signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(MachineError, match=r"loader worker \d \(process \d+\) has given nothing for 1 s: "):
        list(results)
    assert time.monotonic() - began < 8


def test_a_slow_worker_is_waited_for() -> None:
    slow = partial(at, 3, lambda: time.sleep(1.2))
    assert list(map_batches(slow, range(6), 2, patience=5)) == [*range(6)]
    assert list(map_batches(slow, range(6), 2, patience=0)) == [*range(6)]


class OddError(Exception):
    """Cannot be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}\nand more")


def raises(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize("count", [0, 2])
def test_what_a_worker_raises_is_raised_as_it_is(count: int) -> None:
    """torch's own text of it has 20 lines; here they are a note, which --debug shows."""
    for error in (UserError("a line"), MemoryError(), FileNotFoundError(2, "No such file", "a")):
        with pytest.raises(type(error)) as found:
            list(map_batches(partial(at, 3, raises(error)), range(9), count))
        assert str(found.value) == str(error)
        assert found.value.args == error.args
    if count:
        assert "test_workers.py" in found.value.__notes__[0]
        with pytest.raises(RuntimeError, match=r"^OddError: 1 and 2$"):
            list(map_batches(partial(at, 3, raises(OddError(1, 2))), range(9), count))


def test_more_workers_than_cores_are_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert len(list(map_batches(square, range(64), 33))) == 64


@pytest.mark.parametrize("count", [0, 2])
def test_ctrl_c_ends_the_wait_at_once(count: int) -> None:
    """For a thread and for workers that are stuck; nobody waits for them."""
    stuck = partial(at, 2, forever)
    results: Iterator[int] = map_batches(stuck, range(9), count) if count else in_thread(stuck, range(9))
    threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(results)
    assert time.monotonic() - began < 2


def test_the_thread_works_ahead_in_order_and_no_further() -> None:
    started = list[int]()
    results = in_thread(lambda i: started.append(i) or i, range(20), ahead=2)
    assert [next(results), next(results)] == [0, 1]
    time.sleep(0.1)
    assert started == [0, 1, 2, 3]
    assert list(results) == [*range(2, 20)]


def test_a_stuck_thread_is_one_line() -> None:
    release = threading.Event()
    with pytest.raises(MachineError, match=r"reading pictures has given nothing for 0\.3 s: the disk does not answer"):
        list(in_thread(partial(at, 3, release.wait), range(9), patience=0.3))
    release.set()


def test_a_time_out_of_the_work_itself_is_not_taken_for_the_wait() -> None:
    with pytest.raises(TimeoutError, match="the network"):
        list(in_thread(partial(at, 3, raises(TimeoutError(110, "the network"))), range(9), patience=9))


def test_python_ends_although_the_thread_is_stuck() -> None:
    code = (
        "import time\nfrom remask.images.loading.reading_thread import in_thread\n"
        "try:\n    list(in_thread(time.sleep, [600], patience=.2))\nexcept Exception as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("reading pictures has given nothing for 0.2 s")


def test_an_iterator_that_is_left_stops_its_thread() -> None:
    before = threading.enumerate()  # those that another test left stuck
    results = in_thread(square, range(20))
    next(results)
    assert len(threading.enumerate()) == len(before) + 1
    results.close()  # type: ignore[attr-defined]
    assert threading.enumerate() == before
