"""Ctrl-C and SIGTERM: a training ends its step and saves, anything else ends at once, and neither is left unanswered.

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

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_REQUESTS = list["StopRequest"]()
"""The training under way, of which there is one at most."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM outside a training."""


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets `requested`, so that a step can end; a second raises.

    While a batch is waited for, the first raises too: nothing is half done then.
    """

    def __init__(self) -> None:
        self.requested, self._waiting = False, False
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
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._waiting:
            raise _StopWaitingError


class _StopWaitingError(KeyboardInterrupt):
    """The first signal, while a batch is waited for."""


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Context, for a command line, in which SIGTERM is an exception as Ctrl-C is, and each is answered in time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    left = threading.Event()
    before = signal.signal(signal.SIGTERM, _terminate), signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_answer, args=(reader, left), name="remask-signals", daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.signal(signal.SIGTERM, before[0])
        signal.set_wakeup_fd(before[1])
        os.close(writer)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise TerminatedError


def _answer(reader: int, left: threading.Event) -> None:
    """Answer the signals, whose numbers arrive as bytes, until the pipe is closed."""
    count = 0
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
            if number[0] in SIGNALS:
                count += 1
                request = _REQUESTS[-1] if _REQUESTS else None
                answer = threading.Thread(target=_late, args=(number[0], count, request, left), daemon=True)
                answer.start()


def _late(number: int, count: int, request: StopRequest | None, left: threading.Event) -> None:
    """What happens if the program still runs ANSWER seconds after a signal, the `count`-th."""
    if left.wait(ANSWER):
        return
    first = place().rank == 0
    if request and count == 1:
        if first:
            _say("stopping after this step, and saving it; Ctrl-C again ends at once, with what was saved before")
        return
    if first:
        _say(interrupted_line())
    os._exit(128 + number)


def saved_at(step: int, steps: int) -> KeyboardInterrupt:
    """What ends a training that was asked to stop, when its step is saved."""
    error = KeyboardInterrupt()
    error.add_note(f"step {step} of {steps} is saved")
    return error


def interrupted_line(error: BaseException | None = None) -> str:
    """What an interrupted command says: what is saved, and how to go on."""
    notes = getattr(error, "__notes__", ())
    return f"interrupted: {'; '.join(notes) or 'nothing that is half done is left as a result; start it again'}"


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a stream that is closed
        print(f"remask: {line}", file=sys.stderr, flush=True)


__all__ = ["StopRequest", "TerminatedError", "answered", "interrupted_line", "saved_at"]
