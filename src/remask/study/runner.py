"""The cells of a study as processes: one thread each, as many at a time as there are cores, each resumed if it was cut.

A cell is done when its file is there and of the study's settings. Its run lies in a folder named after the settings, so
that a changed row begins anew and never goes on with what another began.
"""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.files.escaping import printable
from remask.files.locking import open_lock, try_lock
from remask.study.budget import size_of
from remask.study.cells import Cell, Size, digest, read_result, settings_of, train_arguments, write_result
from remask.study.plan import needs
from remask.training.devices import cores
from remask.training.run_folder import RunFolder

Say = Callable[[str], None]


def jobs_of_machine() -> int:
    """Processes at a time: as many as there are cores, or one where there is a GPU, which they would share."""
    return 1 if Path("/dev/nvidiactl").exists() else cores()


class Runner:
    """Makes what is missing of a study.

    jobs   processes at a time, of one thread each
    say    receives a line when a cell begins, ends or fails
    """

    def __init__(self, jobs: int, say: Say) -> None:
        self._jobs, self._say = jobs, say
        self._stopped = threading.Event()
        self._sizes: dict[str, Size] = {}

    def run(self, todo: Sequence[Cell]) -> list[str]:
        """Run the cells, those that others need first, and return what failed, a line each. Ctrl-C ends all of them."""
        failed: list[str] = []
        for level in _levels(todo):
            for cell in level:  # before the others begin: nothing else may be at work while a row's speed is measured
                self.size(cell)
            with ThreadPoolExecutor(self._jobs) as pool:
                futures = [pool.submit(self._cell, cell) for cell in level]
                try:
                    failed += [line for future in futures if (line := future.result())]
                except BaseException:
                    self._stopped.set()  # the children got the signal too, save and end; those that wait do not begin
                    raise
            if failed:
                break
        return failed

    def _cell(self, cell: Cell) -> str | None:
        """Make a cell; what is wrong with it, in a line, or None."""
        if self._stopped.is_set():
            return None
        try:
            self.make(cell)
        except UserError as error:
            if self._stopped.is_set():
                return None
            self._say(f"{cell.run}: {error}")
            return f"{cell.run}: {error}"
        return None

    def make(self, cell: Cell) -> None:
        """Train and test a cell, unless its file has the result. Raises UserError with what a command said."""
        settings, done = self.settings(cell), read_result(cell)
        if done and done["digest"] == digest(settings):
            return
        if done:
            self._say(f"{cell.run}: its settings have changed since its result was written: it is run again")
        run = self.folder(cell)
        with _alone(run) as lock:
            if lock is None:
                self._say(f"{cell.run}: another process runs it")
                return
            self._say(f"{cell.run}: trains")
            self._train(cell, run, lock)
            if words := settings["probe"]:
                self.remask(["probe", str(run), *words], _log(run), lock)
            result = write_result(cell, settings, run)
        measured = ", ".join(f"{name} {values['trained']:.1f}" for name, values in result["measures"].items())
        self._say(f"{cell.run}: {measured or 'done'} ({60 * result['cost']['cpu_hours']:.1f} core-minutes)")

    def _train(self, cell: Cell, run: Path, lock: int) -> None:
        """Begin the run of a cell, or go on with it."""
        state = RunFolder(run).read_or_empty("status.json").get("state")
        if state is None and (run / "recipe.toml").is_file():
            state = "running"  # it was killed before it had said so
        if state != "finished" and run.is_dir() and not (run / "checkpoints").is_dir():
            shutil.rmtree(run)  # it was killed while its folder was made
            state = None
        if state is None:
            words = train_arguments(cell, self.size(cell), self._needed(cell))
            self.remask([*words, "--set", "runtime.threads=1", "--out", str(run)], _log(run), lock)
        elif state != "finished":
            self.remask(["resume", str(run)], _log(run), lock)

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All that decides the cell's result, the settings of the rows it needs among it."""
        needed = {name: digest(self.settings(cell._replace(name=name))) for name in needs(cell.row)}
        return settings_of(cell, self.size(cell), needed)

    def folder(self, cell: Cell) -> Path:
        """Of the cell's run."""
        return cell.place.runs / f"{cell.run}-{digest(self.settings(cell))[:8]}"

    def _needed(self, cell: Cell) -> dict[str, Path]:
        return {name: self.folder(cell._replace(name=name)) for name in needs(cell.row)}

    def size(self, cell: Cell) -> Size:
        """How long the cell's row trains, whatever the seed."""
        if cell.name not in self._sizes:
            self._sizes[cell.name] = size_of(cell, self._needed(cell), self.remask)
        return self._sizes[cell.name]

    def remask(self, words: list[str], log: Path, lock: int | None = None) -> None:
        """Run remask on one thread, its output appended to `log`. Raises UserError with its last line if it fails.

        lock   a file descriptor that the process shares: where this one is killed, that one still holds the run
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with log.open("ab") as file:
            done = subprocess.run(
                [sys.executable, "-m", "remask", *words, "--quiet"],
                stdout=file, stderr=subprocess.STDOUT, env=environment, check=False,
                pass_fds=[] if lock is None else [lock],
            )  # fmt: skip
        if done.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            why = lines[-1].removeprefix("remask: ") if lines else f"it ended with {done.returncode}"
            raise UserError(f"remask {words[0]} failed: {why} ({printable(log)})")


def _log(run: Path) -> Path:
    return run.with_name(f"{run.name}.log")


def _levels(todo: Sequence[Cell]) -> list[list[Cell]]:
    """The cells in groups: each needs only those of groups before."""
    depth: dict[str, int] = {}

    def depth_of(cell: Cell) -> int:
        if cell.name not in depth:
            inner = [depth_of(cell._replace(name=name)) for name in needs(cell.row)]
            depth[cell.name] = 1 + max(inner, default=-1)
        return depth[cell.name]

    groups: dict[int, list[Cell]] = {}
    for cell in todo:
        groups.setdefault(depth_of(cell), []).append(cell)
    return [groups[level] for level in sorted(groups)]


@contextmanager
def _alone(run: Path) -> Iterator[int | None]:
    """The descriptor of a lock on this run, held until the context and all who share it end; None if another has it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_lock(run.with_name(f".{run.name}.lock"))
    try:
        yield descriptor if try_lock(descriptor) else None
    finally:
        os.close(descriptor)


__all__ = ["Runner", "jobs_of_machine"]
