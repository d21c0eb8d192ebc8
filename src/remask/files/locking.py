"""Locks on files, which end with the process that holds them, and the one that a run's writer holds. Free of torch."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.files.escaping import printable, quoted

NAME = ".lock"
"""The file in a run's folder that its writer locks, and in which it says who it is. It stays when the lock ends."""
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""Errors of a file system that has no locks."""

_BEGINNING = b'{"host": '
"""How the lock's file begins once it says who has it."""

_LOCKED: dict[Path, tuple[int, bytes]] = {}
"""Folders that this process writes: the open file of each lock, and what it held before."""


def try_lock(descriptor: int) -> bool:
    """Lock an open file, without waiting; False if another process or another open file has it, or none can."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def open_lock(path: Path) -> int:
    """A file for a lock, opened or made, its content left as it is. Raises OSError for a link: it is not followed."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def lock_run(folder: Path, patience: float = 0.0) -> None:
    """Make this process the only writer of a run's folder, until the end of `unlocking` or its own. May be repeated.

    patience   seconds to wait for another process to end
    A POSIX record lock: the loader's processes do not inherit it, so that it ends with this process even if they live
    longer. Raises UserError, which says who has it, if another process is the writer.
    """
    key = folder.resolve()
    if key in _LOCKED:
        return
    descriptor, deadline = open_lock(folder / NAME), time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in NO_LOCKS:
                where = f"{printable(folder)} lies on a file system without locks"
                print(f"remask: {where}: start no second process that trains this run", file=sys.stderr)
                break
            if error.errno in (errno.EACCES, errno.EAGAIN) and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            writer = _writer(descriptor)
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise UserError(f"{folder} is being written by {writer}: wait until it ends, or stop it") from None
    _LOCKED[key] = descriptor, os.pread(descriptor, 4096, 0)
    about = {"host": socket.gethostname(), "pid": os.getpid(), "command": sys.argv[1:2], "since": _now()}
    _rewrite(descriptor, (json.dumps(about) + "\n").encode())


@contextmanager
def unlocking() -> Iterator[None]:
    """Context at whose end other processes may write the runs that this one locked inside."""
    before = {*_LOCKED}
    try:
        yield
    finally:
        for folder in _LOCKED.keys() - before:
            descriptor, earlier = _LOCKED.pop(folder)
            with suppress(OSError):  # a full disk, a folder that went
                _rewrite(descriptor, earlier)  # a command that is refused leaves every file as it was
            os.close(descriptor)


def was_locked(folder: Path) -> bool:
    """Whether a process of remask has begun to write the folder: by the lock's file, which a power cut may shorten."""
    try:
        with open(folder / NAME, "rb") as file:
            text = file.read(len(_BEGINNING))
    except OSError:
        return False
    return _BEGINNING.startswith(text)


def _rewrite(descriptor: int, content: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


def _writer(descriptor: int) -> str:
    """Who has the lock, by what the file says."""
    try:
        about: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        command = quoted(" ".join(["remask", *map(str, about["command"])]))
        return f"process {about['pid']} on {printable(str(about['host']))} ({command}, since {about['since']})"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "another process"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


__all__ = ["NAME", "lock_run", "open_lock", "try_lock", "unlocking", "was_locked"]
