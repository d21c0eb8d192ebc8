"""What a person watches during long work: a live bar on a terminal, plain lines elsewhere, nothing when quiet."""

import sys
import time
from types import TracebackType
from typing import Any, Protocol, TextIO


class Console(Protocol):
    """Shows progress through `total` steps. `update` may be called at every step; it draws at its own pace."""

    def update(self, step: int, words: str) -> None: ...

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        ...

    def __enter__(self) -> "Console": ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Lines:
    """One line at most every `seconds`, and at the last step; for log files and pipes. Silent when quiet."""

    def __init__(
        self, total: int, title: str, quiet: bool = False, seconds: float = 5.0, out: TextIO | None = None
    ) -> None:
        self.total, self.title, self.quiet, self.seconds = total, title, quiet, seconds
        self.out, self.shown = out or sys.stderr, 0.0

    def update(self, step: int, words: str) -> None:
        if step == self.total or time.monotonic() - self.shown >= self.seconds:
            self.shown = time.monotonic()
            self.say(f"{self.title} {step}/{self.total} | {words}")

    def say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=self.out, flush=True)

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class Bar:
    """A rich progress bar with the words beside it."""

    def __init__(self, total: int, title: str) -> None:
        from rich.console import Console as Rich
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        rich = Rich(stderr=True)
        columns: list[Any] = [
            TextColumn("[bold]{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
        ]
        self.progress = Progress(*columns, console=rich)
        self.task = self.progress.add_task(title, total=total, words="")

    def update(self, step: int, words: str) -> None:
        self.progress.update(self.task, completed=step, words=words)

    def say(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False)

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()


def console(total: int, title: str, quiet: bool = False) -> Console:
    """A bar on a terminal, lines elsewhere."""
    return Bar(total, title) if sys.stderr.isatty() and not quiet else Lines(total, title, quiet)


__all__ = ["Bar", "Console", "Lines", "console"]
