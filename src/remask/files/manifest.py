"""manifest.json: size and SHA-256 of every file in a folder, and which of them are no longer what was written."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.files.bounds import MOST_TEXT, open_regular, read_file

NAME = "manifest.json"
_CHECKED: dict[Path, tuple[object, ...]] = {}
"""Folders found intact in this process, with what would change if they were written anew."""


def write_manifest(folder: Path) -> None:
    """Write the manifest of the files in a new folder; its own digest stands in it."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != NAME
    }
    text = json.dumps({"files": files, "sha256": _of(files)}, indent=1) + "\n"
    (folder / NAME).write_bytes(text.encode("utf-8", "surrogateescape"))


def damage(folder: Path) -> list[str] | None:
    """A line for each file of a folder that is missing or no longer what was written; None without a manifest.

    What was found intact is not read again by this process, as long as sizes and times stay.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        manifest = json.loads(read_file(path, MOST_TEXT))
        files: dict[str, dict[str, Any]] = manifest["files"]
        if manifest["sha256"] != _of(files) or any(os.path.basename(name) != name for name in files):
            return [f"{NAME} is damaged"]
        now = _times(folder, files)
        if _CHECKED.get(folder.absolute()) == now:
            return []
        lines = [line for name, about in files.items() if (line := _fault(folder / name, about))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [f"{NAME} is damaged"]
    if not lines:
        _CHECKED[folder.absolute()] = now
    return lines


def refuse_damaged(folder: Path) -> None:
    """Raise UserError for an export of which a file is no longer what was written; earlier versions' pass."""
    if faults := damage(folder):
        raise UserError(f"{folder}: {'; '.join(faults)}; export the run again with remask export")


def sha256(path: Path) -> str:
    """The SHA-256 of a regular file's content, in hexadecimal. Raises OSError for pipes and devices."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it has readinto


def _fault(path: Path, about: dict[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != about["bytes"]:
            return f"{path.name} is damaged: it has {size:,} bytes, not {about['bytes']:,}"
        return None if sha256(path) == about["sha256"] else f"{path.name} is damaged: it is not what was written"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror or error}"


def _of(files: object) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _times(folder: Path, names: dict[str, Any]) -> tuple[object, ...]:
    stats = [os.stat(folder / name) for name in [NAME, *names] if (folder / name).exists()]
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)


__all__ = ["NAME", "damage", "refuse_damaged", "sha256", "write_manifest"]
