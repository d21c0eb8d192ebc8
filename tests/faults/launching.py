"""Runs `remask` in processes forked from this one, which imports everything once: the bits are those of the command."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

PATIENCE = 120.0
"""Seconds that a command may take before it counts as one that hangs, and is killed."""

Prepare = Callable[[], object]
"""Called in the process before the command begins. If it returns something to call, that is called at the end."""


class Ended(NamedTuple):
    """How a command ended. code: as `subprocess` has it, negative for a signal; None if it had to be killed."""

    code: int | None
    errors: str

    @property
    def lines(self) -> list[str]:
        return self.errors.splitlines()


class Command:
    """`remask WORDS` in a process of its own.

    prepare   called in that process before the command begins: installs what is to fail
    said      the file that receives stderr; stdout goes to nothing
    """

    def __init__(self, words: Sequence[str | Path], said: Path, prepare: Prepare | None = None) -> None:
        self.said = said
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                _redirect(said)
                code = _main([*map(str, words)], prepare)
            except BaseException:  # a forked process must never return into the code of its parent
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def poll(self) -> int | None:
        """The wait status of the process if it has ended, else None."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return status if pid else None

    def wait(self, patience: float = PATIENCE) -> Ended:
        """Wait for its end; a command that takes longer is killed, and has no code."""
        deadline, pause = time.monotonic() + patience, 0.002
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                os.waitpid(self.pid, 0)
                return Ended(None, self._errors())
            time.sleep(pause)
            pause = min(pause * 1.5, 0.03)
        return Ended(os.waitstatus_to_exitcode(status), self._errors())

    def kill(self) -> None:
        """End it, and the loader's processes it has."""
        for pid in [*children(self.pid), self.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _errors(self) -> str:
        return self.said.read_text(encoding="utf-8", errors="replace") if self.said.exists() else ""


def warm() -> None:
    """Import all that the commands need, so that no child does; starts no thread."""
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg
    import matplotlib.pyplot
    import PIL.Image
    import sklearn.datasets
    import torch

    matplotlib.use("Agg")
    PIL.Image.init()
    sklearn.datasets.load_digits()
    torch.set_num_threads(1)


def children(pid: int) -> list[int]:
    """Processes that a process has started and that live."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _redirect(said: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    errors = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for target, source in ((0, nothing), (1, nothing), (2, errors)):
        os.dup2(source, target)


def _main(words: list[str], prepare: Prepare | None) -> int:
    """The exit code of the command line in this process."""
    from remask.cli import main as cli

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.argv = ["remask", *words]
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # a pool's may have none
    end = prepare() if prepare else None
    try:
        cli.main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    finally:
        if callable(end):
            end()


__all__ = ["PATIENCE", "Command", "Ended", "children", "warm"]
