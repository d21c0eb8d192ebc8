"""Paths that certainly cannot be read or written."""

import errno
import os
from pathlib import Path

import pytest

from remask.errors import UserError
from remask.files.paths import check_file_out, check_readable, write_error


def test_what_can_be_written_has_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, tmp_path / "new", tmp_path / "new" / "below", Path("new"), Path()):
        assert write_error(path) is None
    check_file_out(Path("x.npz"))
    check_file_out(None)


def test_a_file_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as late:
        (tmp_path / "file" / "new").mkdir(parents=True)
    early = write_error(tmp_path / "file" / "new")
    assert early is not None
    assert (early.errno, early.strerror) == (late.value.errno, late.value.strerror)
    with pytest.raises(NotADirectoryError):
        check_file_out(tmp_path / "file" / "x.npz")


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    error = write_error(tmp_path / "new")
    assert isinstance(error, PermissionError)
    assert (error.errno, error.filename) == (errno.EACCES, str(tmp_path / "new"))


def test_files_to_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_readable(tmp_path / "file")
    with pytest.raises(UserError, match="absent cannot be read: No such file or directory"):
        check_readable(tmp_path / "absent")
    with pytest.raises(UserError, match="it is a folder"):
        check_readable(tmp_path)
