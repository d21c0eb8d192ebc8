"""Errors of the machine, not of the program, as one line with what to do: disks, folders, memory, limits.

Libraries raise them in their own ways: `OSError`, safetensors' error with "(os error 28)", torch's `RuntimeError` whose
text ends with the number of the system's error or has none. Free of torch, which need not be there to be recognised.
"""

import errno
import os
import re
import sys
from pathlib import Path

from remask.errors import MachineError, first_line
from remask.files.escaping import printable
from remask.files.memory import has_room, no_memory, unfolding

CURES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; remove files, or have the quota raised",
    errno.EFBIG: "the file may not grow larger: raise the limit (ulimit -f), or choose another disk",
    errno.EIO: "the disk fails (input/output error); copy what it still gives to another one, and go on there",
    errno.EROFS: "the file system is read-only; mount it for writing, or choose another --out",
    errno.EACCES: "no permission; choose another --out, or another folder to read",
    errno.EPERM: "no permission; choose another --out, or another folder to read",
    errno.ENOENT: "it does not exist, or was removed meanwhile; put it back, or choose another path",
    errno.ENOTDIR: "Not a directory; choose another path",
    errno.EISDIR: "it is a folder; give a file",
    errno.EEXIST: "it exists already; choose another path",
    errno.ELOOP: "its links lead in a circle; choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ESTALE: "the network's file system has lost it; mount it anew, then give the command again",
    errno.ETIMEDOUT: "the file system or network does not answer; give the command again when it does",
    errno.EHOSTDOWN: "the file system or network does not answer; give the command again when it does",
    errno.EBUSY: "something else uses it; try again when that has ended",
    errno.ENOTEMPTY: "something else writes into it; try again when that has ended",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n), or set runtime.workers lower",
    errno.ENFILE: "too many files are open on this machine; end other programs, or have the limit raised",
    errno.ENOMEM: "memory runs out; end other programs, or lower optim.batch_size, runtime.workers or --batch-size",
    errno.EAGAIN: "no more processes or threads may be started; raise the limit (ulimit -u), or lower runtime.workers",
}
"""What is said of each error number of the operating system, and what to do."""

SHARED_MEMORY = (
    "shared memory (/dev/shm) is full: give the container more (docker run --shm-size=8g, or --ipc=host), or set "
    "runtime.workers to 0"
)
_FILE_WRITER = re.compile(r"PytorchStreamWriter|inline_container.*(?:file write failed|unexpected pos)")
_GONE = re.compile(r"Parent directory (.*) does not exist")
_NUMBER = re.compile(r"\(os error (\d+)\)(?: at path \"(.*)\")?")


def refuse_shortage(error: BaseException, path: str | Path, needs: int | None = None) -> None:
    """Raise MachineError if reading a file failed for want of memory that it honestly needs: it is not damaged then.

    needs   bytes that it may take, at most; None: as many as a file of its size may unfold to
    """
    if not no_memory(error):
        return
    if needs is None:
        needs = unfolding(os.path.getsize(path) if os.path.isfile(path) else 0)
    if not has_room(needs):
        raise MachineError(f"{printable(path)} cannot be read: {CURES[errno.ENOMEM]}") from error


def system_line(error: BaseException) -> str | None:
    """One line about an error of the machine, with what to do; None for any other, which is a fault of ours."""
    if no_memory(error):
        return CURES[errno.ENOMEM]
    if isinstance(error, OSError):
        return _of_number(error.errno, error.filename) if error.errno else None
    text = first_line(error)
    library = type(error).__name__ == "SafetensorError"
    if not library and not isinstance(error, RuntimeError):
        return None
    if gone := _GONE.search(text):
        return _of_number(errno.ENOENT, gone[1])
    if "shared memory" in text or "</torch_" in text:
        too_many = "Too many open files" in text
        return CURES[errno.EMFILE] if too_many else SHARED_MEMORY
    if "Too many open files" in text:
        return CURES[errno.EMFILE]
    if "can't start new thread" in text:
        return CURES[errno.EAGAIN]
    if library and (found := _NUMBER.search(text)):
        return _of_number(int(found[1]), found[2])
    for number, cure in CURES.items():  # as torch ends its texts: "Disk quota exceeded (122)"
        if text.rstrip().endswith(f"{os.strerror(number)} ({number})"):
            return cure
    if _FILE_WRITER.search(str(error)):
        return "a file could not be written to its end: the disk is full, or fails; free some space"
    return None


def why_not_made(error: OSError) -> str:
    """Why a folder for results cannot be made, and what to do; on a full disk another name is no help."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return CURES[error.errno or 0] if full else f"{error.strerror}; choose another --out"


def _of_number(number: int, file: str | bytes | int | None) -> str | None:
    """The line about an error number; None for numbers without one, and for a file of the installation itself."""
    if (cure := CURES.get(number)) is None:
        return None
    if not isinstance(file, str | bytes | Path):
        return None if number in _NAMED else cure
    name = os.fsdecode(file)
    if number in _NAMED and _of_installation(name):
        return None
    return f"{name}: {cure}"


_NAMED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
"""Errors that say nothing without a name, and that a fault of the program would raise as well."""


def _of_installation(name: str) -> bool:
    """Whether a file belongs to Python, the installed packages or this package, which no user names."""
    places = {Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[1]}
    path = Path(os.path.abspath(name))
    return any(path.is_relative_to(place) and str(place) != "/" for place in places)


__all__ = ["CURES", "SHARED_MEMORY", "no_memory", "refuse_shortage", "system_line", "why_not_made"]
