"""Display of progress: a live bar on a terminal, plain lines elsewhere, nothing if quiet."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol, TextIO, TypeVar

from remask.files.escaping import on_one_line

T = TypeVar("T")


class Console(Protocol):
    """Shows progress through `total` steps. `update` may be called at every step; refreshing is rate-limited."""

    def update(self, step: int, words: str) -> None: ...

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        ...

    def __enter__(self) -> "Console": ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Lines:
    """Prints at most one line every `seconds`, and one at the last step; for log files and pipes."""

    def __init__(
        self, total: int, title: str, quiet: bool = False, seconds: float = 5.0, out: TextIO | None = None
    ) -> None:
        self.total, self.title, self.quiet, self.seconds = total, on_one_line(title), quiet, seconds
        self.out, self.shown = out or sys.stderr, 0.0

    def update(self, step: int, words: str) -> None:
        if step == self.total or time.monotonic() - self.shown >= self.seconds:
            self.shown = time.monotonic()
            self.say(f"{self.title} {step}/{self.total}" + (f" | {on_one_line(words)}" if words else ""))

    def say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=self.out, flush=True)

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class Bar:
    """A progress bar of rich, with text beside it."""

    def __init__(self, total: int, title: str) -> None:
        from rich.console import Console as Rich
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        rich = Rich(stderr=True)
        columns: list[Any] = [
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}", markup=False),
        ]
        self.progress = Progress(*columns, console=rich)
        self.task = self.progress.add_task(on_one_line(title), total=total, words="")

    def update(self, step: int, words: str) -> None:
        self.progress.update(self.task, completed=step, words=on_one_line(words))

    def say(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False, emoji=False)

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()


def console(total: int, title: str, quiet: bool = False) -> Console:
    """A bar on a terminal, lines elsewhere."""
    return Bar(total, title) if sys.stderr.isatty() and not quiet else Lines(total, title, quiet)


class Watch:
    """Progress of work whose total becomes known during the work: a bar that opens at the first update.

    As a context manager it closes the bar on exit. Only one bar is shown: passes over images within longer work appear
    as text beside its bar.
    """

    def __init__(self, title: str, quiet: bool = False) -> None:
        self.title, self.quiet = title, quiet
        self.screen: Console | None = None
        self.done = 0

    def __call__(self, done: int, total: int, words: str) -> None:
        """Show `done` of `total`, with text beside the bar."""
        if self.screen is None:
            self.screen = console(total, self.title, self.quiet)
            self.screen.__enter__()
        self.done = done
        self.screen.update(done, words)

    def say(self, line: str) -> None:
        """Print a line, above the bar if one is open."""
        if self.screen is not None:
            self.screen.say(line)
        elif not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def over(self, batches: Iterable[T], total: int, title: str = "pictures") -> Iterator[T]:
        """Yield the batches, and show how many of `total` images are done."""
        if self.screen is not None:
            yield from self._within(batches, total, title, self.screen)
            return
        with console(total, title, self.quiet) as screen:
            done = 0
            for batch in batches:
                yield batch
                done += len(batch.images)  # type: ignore[attr-defined]
                screen.update(done, "")

    def _within(self, batches: Iterable[T], total: int, title: str, screen: Console) -> Iterator[T]:
        done = 0
        for batch in batches:
            yield batch
            done += len(batch.images)  # type: ignore[attr-defined]
            screen.update(self.done, f"{title} {done}/{total}")

    def close(self) -> None:
        """Close the bar."""
        if self.screen is not None:
            self.screen.__exit__(None, None, None)
            self.screen = None

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def clock(hours: float) -> str:
    """Hours as text, like 1h05m or 3m20s."""
    minutes, seconds = divmod(round(hours * 3600), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{seconds:02d}s"


__all__ = ["Bar", "Console", "Lines", "Watch", "clock", "console"]
