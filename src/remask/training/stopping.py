"""Ctrl-C, SIGTERM and SIGUSR1: a training ends its step and saves, anything else ends at once, and all are answered.

SIGUSR1 is how a scheduler warns of a time limit (SLURM: --signal=USR1@300); the exit code then asks for another start.

Python runs a signal's handler between two of its own instructions only, so that a long operation, or a wait for another
process of the run, hears nothing. A thread hears it at once: it says a line, or ends the process. Free of torch.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, TypeVar

from remask.training.launcher import place

T = TypeVar("T")

ANSWER = 2.0
"""Seconds after which a signal is answered by the thread, if nothing else did."""

WARNING = signal.SIGUSR1
"""The warning of a time limit."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, WARNING)

TRY_AGAIN = os.EX_TEMPFAIL
"""Exit code, 75, of what a time limit cut short: started again, it goes on."""

_REQUESTS = list["StopRequest"]()
"""The training under way, of which there is one at most."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM outside a training."""


class TimeLimitError(KeyboardInterrupt):
    """The warning of a time limit, in a training (which is saved then) or outside one."""


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets `requested`, so that a step can end; a second raises.

    A warning of a time limit sets `time_limit` too, and never raises: it may come from several senders.
    While a batch is waited for, the first signal raises too: nothing is half done then.
    """

    def __init__(self) -> None:
        self.requested, self.time_limit = False, False
        self._interrupted, self._waiting = False, False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
            _REQUESTS.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self in _REQUESTS:
            _REQUESTS.remove(self)

    def next_of(self, batches: Iterator[T], alone: bool) -> T | None:
        """The next batch; None where the first signal arrives before it, unless other processes wait as well."""
        self._waiting = alone
        try:
            return next(batches)
        except _StopWaitingError:
            return None
        finally:
            self._waiting = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == WARNING:
            self.time_limit = True
        elif self._interrupted:
            raise KeyboardInterrupt
        else:
            self._interrupted = True
        first, self.requested = not self.requested, True
        if first and self._waiting:
            raise _StopWaitingError


class _StopWaitingError(KeyboardInterrupt):
    """The first signal, while a batch is waited for."""


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Context, for a command line, in which the other signals are exceptions as Ctrl-C is, and all answered in time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    left = threading.Event()
    before = {number: signal.signal(number, _raise) for number in (signal.SIGTERM, WARNING)}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_answer, args=(reader, left), name="remask-signals", daemon=True).start()
    try:
        yield
    finally:
        left.set()
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writer)


def _raise(number: int, frame: FrameType | None) -> None:
    raise TimeLimitError if number == WARNING else TerminatedError


def _answer(reader: int, left: threading.Event) -> None:
    """Answer the signals, whose numbers arrive as bytes, until the pipe is closed."""
    count = 0
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
            if number[0] in SIGNALS:
                count += number[0] != WARNING
                request = _REQUESTS[-1] if _REQUESTS else None
                answer = threading.Thread(target=_late, args=(number[0], count, request, left), daemon=True)
                answer.start()


def _late(number: int, count: int, request: StopRequest | None, left: threading.Event) -> None:
    """What happens if the program still runs ANSWER seconds after a signal, the `count`-th that is no warning."""
    if left.wait(ANSWER):
        return
    first, warned = place().rank == 0, number == WARNING
    if request and (warned or count == 1):
        again = "the time limit is near" if warned else "Ctrl-C again ends at once, with what was saved before"
        if first:
            _say(f"stopping after this step, and saving it; {again}")
        return
    if first:
        _say(interrupted_line(TimeLimitError() if warned else None))
    os._exit(TRY_AGAIN if warned else 128 + number)


def saved_at(step: int, steps: int, time_limit: bool) -> KeyboardInterrupt:
    """What ends a training that was asked to stop, perhaps for a time limit, when its step is saved."""
    error = TimeLimitError() if time_limit else KeyboardInterrupt()
    error.add_note(f"step {step} of {steps} is saved")
    return error


def interrupted_line(error: BaseException | None = None) -> str:
    """What an interrupted command says: what is saved, and how to go on."""
    notes = getattr(error, "__notes__", ())
    why = " by SIGUSR1, for the time limit is near" if isinstance(error, TimeLimitError) else ""
    return f"interrupted{why}: {'; '.join(notes) or 'nothing that is half done is left as a result; start it again'}"


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a stream that is closed
        print(f"remask: {line}", file=sys.stderr, flush=True)


__all__ = [
    "TRY_AGAIN", "StopRequest", "TerminatedError", "TimeLimitError", "answered", "interrupted_line", "saved_at",
]  # fmt: skip
