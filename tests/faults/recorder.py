"""Records what a piece of code writes, and replays what a power cut may leave of it, as ALICE does (OSDI 2014).

A file's content is on the disk when the file was synced, a name when its folder was. Until then a power cut may keep or
lose each of them. The recorder notes every fsync, rename, exchange, link and deletion under a folder; what was written
or made in between is found by comparing the folder with what it held before, for libraries write from compiled code.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from remask.files import records

Tree = dict[str, bytes | None]
"""Content of every file by its name in the folder; None for a folder."""


class Operation(NamedTuple):
    """A change, or a sync. Names are relative to the recorded folder, "" is that folder itself.

    kind   create (a file), write (content), make (a folder), rename, exchange, link (name, other), remove, sync
    """

    kind: str
    name: str
    other: str = ""
    content: bytes = b""


class Recorder:
    """The operations under `root` while `recording`; `states` are the folders that a power cut may leave."""

    def __init__(self, root: Path) -> None:
        self.root, self.operations = root, list[Operation]()
        self.before = tree(root)
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
        self._known = tree(self.root)

    def _look_around(self) -> None:
        """Note what was written or made since the last operation."""
        now = tree(self.root)
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
        """(What was lost, the folder) for every prefix of the operations.

        Of each prefix: all that is not synced is kept, all is lost, and each one alone is lost; a content that is lost
        is empty, cut in half, or the one before.
        """
        for end in range(len(self.operations) + 1):
            done = self.operations[:end]
            unsynced = [i for i, operation in enumerate(done) if not _is_synced(done, i)]
            yield f"{end} done", replayed(self.before, done, {})
            for lost in dict.fromkeys([tuple(unsynced), *((i,) for i in unsynced)]):
                for how in ("nothing", "empty", "half") if any(done[i].kind == "write" for i in lost) else ("nothing",):
                    yield (
                        f"{end} done, {how} of {[done[i][:3] for i in lost]}",
                        replayed(self.before, done, dict.fromkeys(lost, how)),
                    )


def _is_synced(done: list[Operation], i: int) -> bool:
    """Whether operation i is on the disk for certain: a sync of its file (content) or its folders (names) follows."""
    operation, later = done[i], done[i + 1 :]
    if operation.kind == "sync":
        return True
    names = [operation.name, operation.other] if operation.kind in ("rename", "exchange", "link") else [operation.name]
    parents = {str(Path(name).parent).removeprefix(".") for name in names}
    needed = {operation.name} if operation.kind == "write" else parents
    return all(
        any(op.kind == "sync" and op.name == _renamed(name, later[:j]) for j, op in enumerate(later)) for name in needed
    )


def _renamed(name: str, operations: list[Operation]) -> str:
    """What a file or folder is called after these operations."""
    for op in operations:
        pairs = {"rename": [(op.name, op.other)], "exchange": [(op.name, op.other), (op.other, op.name)]}
        for old, new in pairs.get(op.kind, []):
            if name == old or name.startswith(old + "/"):
                name = new + name[len(old) :]
                break
    return name


def replayed(before: Tree, operations: list[Operation], lost: dict[int, str]) -> Tree:
    """The folder after the operations, without the lost ones; what rests on something lost does not happen."""
    state = dict(before)
    for i, op in enumerate(operations):
        how = lost.get(i)
        if op.kind == "write":
            if op.name not in state:
                continue
            if how is None:
                state[op.name] = op.content
            elif how != "nothing":
                earlier = state.get(op.name) or b""  # what a file was that is appended to stays
                kept = len(earlier) if op.content.startswith(earlier) else 0
                state[op.name] = op.content[: (kept + len(op.content)) // 2 if how == "half" else kept]
        elif how is None:
            _apply(state, op)
    return state


def _apply(state: Tree, op: Operation) -> None:
    if op.kind in ("create", "make"):
        if str(Path(op.name).parent) in (".", *state):
            state.setdefault(op.name, b"" if op.kind == "create" else None)
    elif op.kind == "remove":
        for name in _under(state, op.name):
            del state[name]
    elif op.kind == "link" and op.name in state:
        state[op.other] = state[op.name]
    elif op.kind == "rename" and op.name in state:
        moved = {op.other + name[len(op.name) :]: state.pop(name) for name in _under(state, op.name)}
        for name in _under(state, op.other):
            del state[name]
        state.update(moved)
    elif op.kind == "exchange" and op.name in state and op.other in state:
        one = {op.other + name[len(op.name) :]: state.pop(name) for name in _under(state, op.name)}
        other = {op.name + name[len(op.other) :]: state.pop(name) for name in _under(state, op.other)}
        state.update(one | other)


def _under(state: Tree, name: str) -> list[str]:
    return [found for found in state if found == name or found.startswith(name + "/")]


def tree(root: Path) -> Tree:
    """What a folder holds."""
    found: Tree = {}
    for parent, folders, files in os.walk(root):
        place = Path(parent).relative_to(root)
        found |= {str(place / name): None for name in sorted(folders)}
        for name in sorted(files):
            found[str(place / name)] = (root / place / name).read_bytes()
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


__all__ = ["Operation", "Recorder", "Tree", "materialise", "replayed", "tree"]
