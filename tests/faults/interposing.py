"""Counts what a process does to the files under a folder, and lets something happen at the n-th of these operations.

Operations are numbered from 0 in the order in which they are made, in all threads together, and named by kind, file and
stage. They go through os, through `open` (whose content is written in halves, so that it can end in the middle), and
through safetensors' and torch's compiled writers, which are cut in half as well.
"""

import builtins
import functools
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from remask.commands import pretraining, resuming, task_runs
from remask.files import records
from remask.training import checkpoint, trainer
from remask.training.run_folder import RunFolder

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ON_DESCRIPTORS = ("write", "pwrite", "fsync", "ftruncate")
ON_PATHS = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "link", "chmod")


class Operation(NamedTuple):
    """An operation on a file under the folder, or a step (kind "stage") of the program."""

    number: int
    kind: str
    name: str
    stage: str


Act = Callable[[Operation], None]


class Interposer:
    """Calls `act` before each operation under `root`; what it raises is what the operation raises."""

    def __init__(self, root: Path, act: Act) -> None:
        self.root, self._act, self.count, self.stage = str(root), act, 0, "before the folder"
        self._lock = threading.RLock()
        self._inside = threading.local()

    def at(self, kind: str, place: str | int | Path | None) -> None:
        """Count an operation, unless it is elsewhere or belongs to one that is under way."""
        name = self._name(place)
        if name is None or getattr(self._inside, "busy", False):
            return
        with self._lock:
            operation = Operation(self.count, kind, name, self.stage)
            self.count += 1
        self._inside.busy = True
        try:
            self._act(operation)
        finally:
            self._inside.busy = False

    def _name(self, place: str | int | Path | None) -> str | None:
        if isinstance(place, int):
            try:
                place = os.readlink(f"/proc/self/fd/{place}")
            except OSError:
                return None
        if place is None:
            return ""
        path = os.path.abspath(os.fsdecode(place))
        return os.path.relpath(path, self.root) if path == self.root or path.startswith(self.root + "/") else None

    def install(self) -> None:
        """Patch this process, for good."""
        for name in (*ON_DESCRIPTORS, *ON_PATHS):
            setattr(os, name, self._before(name, getattr(os, name)))
        os.open = self._opening(os.open)  # type: ignore[assignment]
        io.open = builtins.open = self._buffered(builtins.open)  # type: ignore[assignment]
        records.exchange = self._before("exchange", records.exchange)
        checkpoint.save_file = self._compiled(checkpoint.save_file, 1, torn_safetensors)
        safetensors.torch.save_file = self._compiled(safetensors.torch.save_file, 1, torn_safetensors)
        torch.save = self._compiled(torch.save, 1, torn_torch)
        self._stages()

    def _before(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def interposed(place: Any, *given: Any, **named: Any) -> Any:
            self.at(kind, _within(place, named.get("dir_fd")))
            return real(place, *given, **named)

        return interposed

    def _opening(self, real: Callable[..., int]) -> Callable[..., int]:
        def interposed(path: Any, flags: int, *given: Any, **named: Any) -> int:
            if flags & WRITES:
                self.at("open", _within(path, named.get("dir_fd")))
            return real(path, flags, *given, **named)

        return interposed

    def _buffered(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def interposed(file: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or self._name(file) is None:
                return real(file, mode, *given, **named)
            self.at("open", file)
            opened = real(file, mode, *given, **named)
            if not isinstance(file, int) and hasattr(opened, "__dict__"):
                opened.write = self._in_halves(opened, opened.write, file)
            return opened

        return interposed

    def _in_halves(self, opened: Any, write: Callable[[Any], int], file: Any) -> Callable[[Any], int]:
        def interposed(content: Any) -> int:
            half = len(content) // 2
            self.at("write", file)
            write(content[:half])
            opened.flush()
            self.at("write half", file)
            written = half + write(content[half:])
            opened.flush()
            return written

        return interposed

    def _compiled(self, real: Callable[..., Any], at: int, torn: Callable[[Path], None]) -> Callable[..., Any]:
        @functools.wraps(real)
        def interposed(*given: Any, **named: Any) -> Any:
            file = given[at] if len(given) > at else named.get("filename", named.get("f"))
            if not isinstance(file, str | Path) or self._name(file) is None:
                return real(*given, **named)
            file = Path(file)
            self.at("write", file)
            done = real(*given, **named)
            content = file.read_bytes()
            os.truncate(file, len(content) // 2)
            try:
                self.at("write half", file)
            except OSError as error:
                torn(file)
                raise as_library(error, torn is torn_torch) from error
            with io.FileIO(file, "r+") as whole_file:
                whole_file.write(content)
            return done

        return interposed

    def _stages(self) -> None:
        """Name the stages of a run as its functions are entered."""
        entered: list[tuple[Any, str, str]] = [
            (RunFolder, "begin", "before the first checkpoint"), (trainer.Trainer, "step", "training"),
            (pretraining, "export", "export"), (pretraining, "reconstruct", "figure"),
            (pretraining, "report", "report"),
            (RunFolder, "finish", "the last word"),
        ]  # fmt: skip
        for owner, name, stage in entered:
            setattr(owner, name, self._entering(stage, getattr(owner, name)))
        save = checkpoint.write

        @functools.wraps(save)
        def saving(*given: Any) -> None:
            before, self.stage = self.stage, "save" if self.stage == "training" else self.stage
            try:
                save(*given)
            finally:
                self.stage = before

        from remask.training import saving as saver

        saver.write = saving  # type: ignore[assignment]
        for module in (pretraining, resuming, task_runs):
            if hasattr(module, "train"):
                module.train = self._entering(self.stage, module.train)

    def _entering(self, stage: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def interposed(*given: Any, **named: Any) -> Any:
            self.stage = stage
            self.at("stage", None)
            return real(*given, **named)

        return interposed


def _within(place: Any, folder: int | None) -> Any:
    """A path, which may be relative to an open folder."""
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(place)) if folder is not None else place


def torn_safetensors(file: Path) -> None:
    """safetensors writes a file of its own and leaves nothing of the name."""
    file.unlink(missing_ok=True)


def torn_torch(file: Path) -> None:
    """torch leaves what it has written."""


def as_library(error: OSError, by_torch: bool) -> Exception:
    """What safetensors and torch make of an error of the system."""
    if by_torch:
        return RuntimeError(
            "[enforce fail at inline_container.cc:671] . PytorchStreamWriter failed writing file data/0"
        )
    return safetensors.SafetensorError(
        f'Error while serializing: I/O error: {error.strerror} (os error {error.errno}) at path "{error.filename}"'
    )


__all__ = ["Act", "Interposer", "Operation"]
