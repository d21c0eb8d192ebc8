"""Disks that fail: full, with input/output errors, read-only, over their quota."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.injecting import Injection, Result, at, begun, described
from tests.faults.interposing import Operation

FREE = (0, 4096, 40_960, 300_000)
"""Bytes that are left on the disk when it fills."""
SIZE = 16 * 2**20


def full(injection: Injection) -> Result:
    """A disk of its own that fills at an operation, and on which there is room again before the run goes on."""
    reference = injection.references["pretrain"]
    operation = injection.operation(reference)
    with disk(injection.folder / "disk") as place:
        inside = injection._replace(folder=place)
        free = FREE[injection.number % len(FREE)]
        ended = begun(reference.subject, inside.run, at(operation.number, filling(place, free), inside.run)).wait()
        (place / "ballast").unlink(missing_ok=True)
        return inside.after(reference, f"{free} bytes left, {described(operation)}", ended, 2, 0)


def input_output(injection: Injection) -> Result:
    """EIO at an operation, and in every other injection at all that follow."""
    return _failing(injection, errno.EIO, lasting=injection.number % 2 == 1)


def read_only(injection: Injection) -> Result:
    """EROFS at an operation and all that follow, as where the kernel has found errors on a disk."""
    return _failing(injection, errno.EROFS, lasting=True)


def quota(injection: Injection) -> Result:
    """EDQUOT at an operation and all that follow."""
    return _failing(injection, errno.EDQUOT, lasting=True)


def _failing(injection: Injection, number: int, *, lasting: bool) -> Result:
    reference = injection.references["pretrain"]
    operation = injection.operation(reference)
    fails = at(operation.number, failing(number, injection.run), injection.run, lasting=lasting)
    ended = begun(reference.subject, injection.run, fails).wait()
    place = f"{'from here on' if lasting else 'once'}, {described(operation)}"
    return injection.after(reference, place, ended, 2, 0)


def failing(number: int, run: Path) -> Callable[[Operation], None]:
    """Lets operations on files raise an error of the system."""

    def act(operation: Operation) -> None:
        if operation.kind != "stage":
            raise OSError(number, os.strerror(number), str(run / operation.name))

    return act


def filling(place: Path, free: int) -> Callable[[Operation], None]:
    """Fills a disk but for `free` bytes."""

    def act(_: Operation) -> None:
        about = os.statvfs(place)
        left = max(0, about.f_bavail * about.f_frsize - free)
        descriptor = os.open(place / "ballast", os.O_WRONLY | os.O_CREAT)
        try:
            os.posix_fallocate(descriptor, 0, left) if left else None
        finally:
            os.close(descriptor)

    return act


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A file system of 16 MB, in memory."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def may_mount() -> bool:
    """Whether this process may mount a file system; else disks fill by an error alone (ENOSPC)."""
    return (
        os.geteuid() == 0 and subprocess.run(["mount", "--version"], capture_output=True, check=False).returncode == 0
    )


__all__ = ["disk", "full", "input_output", "may_mount", "quota", "read_only"]
