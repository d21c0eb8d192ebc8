"""Replaces a folder that may hold other people's files beside ours, and single files by their content."""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from remask.files.manifest import NAME as MANIFEST
from remask.files.records import atomic_folder, atomic_write, remove_leftovers, sync_folder, sync_tree


@contextmanager
def replaced_folder(path: Path, ours: Collection[str]) -> Iterator[Path]:
    """Yield a temporary folder whose files are those of `path` on exit; after an error nothing has changed.

    ours   names that an earlier one may hold
    A folder with nothing else in it is replaced at once. In one with other files, which stay, or that is somebody's
    current folder or a mounted one, the manifest is replaced first and then ours, one by one: until the last it is at
    odds with them, so that no half of the new is taken for all of it.
    """
    path = Path(os.path.realpath(path))
    if _is_ours(path, ours):
        with atomic_folder(path) as tmp:
            yield tmp
        return
    with atomic_folder_in(path) as tmp:
        yield tmp
        sync_tree(tmp)
        for file in sorted(tmp.iterdir(), key=lambda file: (file.name != MANIFEST, file.name)):
            os.replace(file, path / file.name)
            sync_folder(path)


@contextmanager
def atomic_folder_in(path: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `path`, which is deleted on exit."""
    inner = path / "new"
    remove_leftovers(inner)
    tmp = path / f".new.{os.urandom(8).hex()}.part"
    os.mkdir(tmp)
    try:
        yield tmp
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, which then holds all of the content or what it held before."""
    with atomic_write(path) as tmp:
        tmp.write_bytes(content)


def link_beside(file: Path, copy: Path) -> None:
    """Give a file that is replaced and never modified a second name, as a hard link or else as a copy."""
    with atomic_write(copy) as tmp:
        tmp.unlink()
        try:
            os.link(file, tmp)
        except OSError:
            shutil.copyfile(file, tmp)
        if copy.exists():  # renaming onto a link of the same file would leave both names
            copy.unlink()


def _is_ours(path: Path, ours: Collection[str]) -> bool:
    """Whether a folder may be exchanged: absent, or one that holds an export alone and is no place of its own."""
    if not os.path.lexists(path):
        return True
    with suppress(OSError):  # a current folder that was removed
        here = Path(os.path.realpath(os.getcwd()))
        if path == here or path in here.parents:
            return False
    return path.is_dir() and not path.is_mount() and {entry.name for entry in path.iterdir()} <= {*ours}


__all__ = ["link_beside", "replaced_folder", "write_bytes"]
