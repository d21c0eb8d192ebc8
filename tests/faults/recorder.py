"""Records what a piece of code writes, and replays what a power cut may leave of it, as ALICE does (OSDI 2014).

A file's content is on the disk when the file was synced, a name when its folder was. Until then a power cut may keep or
lose each of them. The recorder notes every fsync, rename, exchange, link and deletion under a folder; what was written
or made in between is found by comparing the folder with what it held before, for libraries write from compiled code.
"""

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from remask.files import records
from tests.faults.crash_states import Operation, Tree, replayed, states


class Recorder:
    """The operations under `root` while `recording`; `states` are the folders that a power cut may leave."""

    def __init__(self, root: Path) -> None:
        self.root, self.operations = root, list[Operation]()
        self._read = dict[Path, tuple[object, bytes]]()
        self.before = tree(root, self._read)
        self._known = dict(self.before)

    @contextmanager
    def recording(self, patch: pytest.MonkeyPatch) -> Iterator["Recorder"]:
        """Context in which all that goes through os and `records.exchange` is noted."""
        with patch.context() as inside:
            for name in ("fsync", "rename", "replace", "link", "unlink", "remove", "rmdir"):
                inside.setattr(os, name, self._noting(name, getattr(os, name)))
            real = records.exchange

            def exchange(one: Path, other: Path) -> bool:
                self._look_around()
                done = real(one, other)
                if done:
                    self._note("exchange", one, other)
                return done

            inside.setattr(records, "exchange", exchange)
            yield self
        self._look_around()

    def _noting(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def noted(*given: object, **named: object) -> object:
            self._look_around()
            place = self._path(given[0], named.get("dir_fd"))
            done = real(*given, **named)
            if name == "fsync":
                self._note("sync", place)
            elif name in ("rename", "replace"):
                self._note("rename", place, self._path(given[1], None))
            elif name == "link":
                self._note("link", place, self._path(given[1], None))
            else:
                self._note("remove", place)
            return done

        return noted

    def _path(self, given: object, folder: object) -> Path:
        if isinstance(given, int):
            return Path(os.readlink(f"/proc/self/fd/{given}"))
        path = Path(os.fsdecode(given))  # type: ignore[arg-type]
        return Path(os.readlink(f"/proc/self/fd/{folder}")) / path if isinstance(folder, int) else path.absolute()

    def _note(self, kind: str, place: Path, other: Path | None = None) -> None:
        if not place.is_relative_to(self.root):
            return
        relative = [str(path.relative_to(self.root)) for path in (place, *([other] if other else []))]
        names = ["" if name == "." else name for name in relative]
        self.operations.append(Operation(kind, *names))
        self._known = tree(self.root, self._read)

    def _look_around(self) -> None:
        """Note what was written or made since the last operation."""
        now = tree(self.root, self._read)
        for name, content in now.items():
            if name not in self._known or self._known[name] != content:
                if name not in self._known:
                    self.operations.append(Operation("create" if content is not None else "make", name))
                if content:
                    self.operations.append(Operation("write", name, content=content))
        gone = [name for name in self._known if name not in now]
        self.operations += [Operation("remove", name) for name in reversed(gone)]
        self._known = now

    def states(self) -> Iterator[tuple[str, Tree]]:
        """(What was lost, the folder) for all that a power cut may leave; see `crash_states.states`."""
        for _, lost, state in states(self.before, self.operations):
            yield lost, state


def tree(root: Path, known: dict[Path, tuple[object, bytes]] | None = None) -> Tree:
    """What a folder holds. known: contents that were read before, by what tells that a file has not changed."""
    found: Tree = {}
    for parent, folders, files in os.walk(root):
        place = Path(parent).relative_to(root)
        found |= {str(place / name): None for name in sorted(folders)}
        for name in sorted(files):
            file, about = root / place / name, os.stat(root / place / name)
            stamp = about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
            earlier = (known or {}).get(file)
            content = earlier[1] if earlier and earlier[0] == stamp else file.read_bytes()
            found[str(place / name)] = content
            if known is not None:
                known[file] = stamp, content
    return found


def materialise(state: Tree, root: Path) -> None:
    """Write the folder of a state to `root`, in the place of what is there."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, content in sorted(state.items()):
        path = root / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def recording(run: Path) -> Callable[[], object]:
    """Records a process's operations under a folder; they are stored beside it."""

    def prepare() -> Callable[[], None]:
        recorder, patch = Recorder(run), pytest.MonkeyPatch()
        context = recorder.recording(patch)
        context.__enter__()

        def end() -> None:
            context.__exit__(None, None, None)
            run.with_name("recording").write_bytes(pickle.dumps([tuple(op) for op in recorder.operations]))

        return end

    return prepare


__all__ = ["Operation", "Recorder", "Tree", "materialise", "recording", "replayed", "tree"]
