"""Durable replacement of files and folders, and reading of JSON Lines files.

What is new is written under a random name beside the old, synced, renamed, and the rename is synced: after a kill or a
power cut at any moment there is all of the old or all of the new. The lock that a writer holds on its temporary ends
with the process, so the next one removes what a killed process left, and nothing that somebody still writes.
"""

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from remask.files.locking import try_lock
from remask.files.text import LONGEST

NOT_SYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)
"""Errors of opening or syncing a folder where the file system has no such thing, or lets nobody read the folder."""
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV)
_CURRENT_FOLDER, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD of fcntl.h, RENAME_EXCHANGE of linux/fs.h


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary file beside `path`; on exit it replaces `path`, after an error it is deleted.

    sync   False for what may be old, empty or damaged after a power cut, and is written often
    The file gets the permissions of the umask, whoever writes it.
    """
    make_folder(path.parent)
    remove_leftovers(path)
    tmp = temporary_beside(path)
    descriptor = os.open(tmp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        try_lock(descriptor)
        yield tmp
        if sync:
            sync_file(tmp)
        os.replace(tmp, path)
        if sync:
            sync_folder(path.parent)
    finally:
        tmp.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on exit it replaces `path`, whatever that held. After an error it goes.

    All files and folders in it are synced before the old ones are touched, and the old ones are deleted when the new
    name is synced.
    """
    make_folder(path.parent)
    remove_leftovers(path)
    tmp = temporary_beside(path)
    os.mkdir(tmp)
    descriptor = os.open(tmp, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try_lock(descriptor)
        yield tmp
        sync_tree(tmp)
        _replace_folder(tmp, path)
        remove_leftovers(path)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
        os.close(descriptor)


def _replace_folder(new: Path, path: Path) -> None:
    """Give `new` the name `path`; what had it is then `new`, or a `.old` beside it where names cannot be exchanged."""
    if not os.path.lexists(path):
        os.rename(new, path)
    elif not exchange(new, path):
        old = temporary_beside(path, ".old")
        os.rename(path, old)
        try:
            os.rename(new, path)
        except OSError:
            os.rename(old, path)
            raise
    sync_folder(path.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, as Linux can; False where libc or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = (_CURRENT_FOLDER, os.fsencode(one), _CURRENT_FOLDER, os.fsencode(other))
    if rename(*names, _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def make_folder(path: Path) -> None:
    """Make a folder and those above it, so that they are there after a power cut too."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)


def sync_file(path: Path) -> None:
    """Return when the content of a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Return when the names in a folder are on the disk, as far as its file system can say so."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in NOT_SYNCED:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SYNCED:
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Sync a new folder and all in it. Its files get the permissions of the umask, which the folder shows."""
    mode = folder.stat().st_mode & 0o666
    for parent, _, names in os.walk(folder, topdown=False):
        for file in (Path(parent) / name for name in names):
            if not file.is_symlink():
                file.chmod(mode)
                sync_file(file)
        sync_folder(Path(parent))


def temporary_beside(path: Path, suffix: str = ".part") -> Path:
    """A name beside `path` that nobody can foresee, hidden, at most LONGEST bytes long."""
    return path.with_name(f"{_hidden(path)}.{secrets.token_hex(8)}{suffix}")


def leftovers(path: Path) -> list[Path]:
    """Temporaries of `path`, of this version or earlier ones, whether somebody writes them or not."""
    pattern = re.compile(re.escape(_hidden(path)) + r"(\.[0-9a-f]{16})?\.(part|old)")
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path.parent) as entries:
        return [path.with_name(entry.name) for entry in entries if pattern.fullmatch(entry.name)]
    return []


def remove_leftovers(path: Path) -> None:
    """Delete temporaries of `path` that no process writes any more. An `.old` stays while `path` is missing."""
    for left in leftovers(path):
        if left.suffix == ".old" and not os.path.lexists(path):
            continue
        with suppress(OSError):  # it went meanwhile, or is somebody else's
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                if try_lock(descriptor):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(descriptor)


def _hidden(path: Path) -> str:
    name = f".{path.name}"
    if len(os.fsencode(name)) + len(".0123456789abcdef.part") > LONGEST:
        name = f".{hashlib.blake2b(os.fsencode(path.name), digest_size=16).hexdigest()}"
    return name


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON Lines file, [] if it does not exist. Skips lines that are cut off or hold no object."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    objects = []
    for line in text.splitlines(keepends=True):
        try:
            content = json.loads(line) if line.endswith("\n") else None
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            objects.append(content)
    return objects


__all__ = [
    "atomic_folder", "atomic_write", "exchange", "leftovers", "make_folder", "read_json_lines", "remove_leftovers",
    "sync_file", "sync_folder", "sync_tree", "temporary_beside",
]  # fmt: skip
