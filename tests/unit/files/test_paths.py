"""Paths that certainly cannot be read or written."""

import errno
import os
from pathlib import Path

import pytest

from remask.errors import UserError
from remask.files.paths import check_file_out, check_readable, home_expanded, write_error
from tests.architecture.source import LIBRARY


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


def test_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped user is a line; a file of such a name is itself; no other way of asking is used, as it raises."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    assert home_expanded("~/a") == home_expanded(Path("~/a")) == str(tmp_path / "me" / "a")
    assert home_expanded("a/~b") == "a/~b"
    with pytest.raises(UserError, match=r"^~nosuch/a: there is no user 'nosuch', whose home ~nosuch means: ") as found:
        home_expanded("~nosuch/a")
    assert str(found.value).endswith("write ./~nosuch/a")
    (tmp_path / "~nosuch").mkdir()
    (tmp_path / "~nosuch" / "a").touch()
    assert home_expanded("~nosuch/a") == "~nosuch/a"
    assert [path.name for path in LIBRARY.rglob("*.py") if ").expanduser()" in path.read_text()] == []
