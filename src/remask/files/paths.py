"""Checks that find unreadable and unwritable paths before any computation starts."""

import errno
import os
from pathlib import Path

from remask.errors import UserError


def home_expanded(path: str | Path) -> str:
    """The path with `~` and `~user` as the folder that they mean. Raises UserError for a user who does not exist.

    What exists under the very name, `~x` in this folder, is that.
    """
    text = str(path)
    if not text.startswith("~") or os.path.lexists(text):
        return text
    if (expanded := os.path.expanduser(text)).startswith("~"):
        user = text.partition("/")[0]
        raise UserError(
            f"{text}: there is no user {user[1:]!r}, whose home {user} means: correct it, or write ./{text}"
        )
    return expanded


def check_readable(path: str | Path) -> None:
    """Raise UserError for a file that does not exist, or a folder."""
    if not os.path.exists(path):
        raise UserError(f"{path} cannot be read: {os.strerror(errno.ENOENT)}")
    if os.path.isdir(path):
        raise UserError(f"{path} cannot be read: it is a folder; give a file in it")


def write_error(folder: Path) -> OSError | None:
    """The OSError that creating `folder`, or a file in it, would raise; None if no reason to fail is known."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not existing.is_dir():
        return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if os.access(existing, os.W_OK | os.X_OK):
        return None
    read_only = hasattr(os, "statvfs") and os.statvfs(existing).f_flag & os.ST_RDONLY
    number = errno.EROFS if read_only else errno.EACCES
    return OSError(number, os.strerror(number), str(folder))


def check_file_out(file: Path | None) -> None:
    """Raise the OSError that writing the file would raise; None passes."""
    if file is not None and (error := write_error(file.parent)):
        raise error


__all__ = ["check_file_out", "check_readable", "home_expanded", "write_error"]
