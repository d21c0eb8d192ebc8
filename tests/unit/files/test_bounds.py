"""Regular files of bounded size only, and bounds on what one file may unfold to."""

import errno
import os
import socket
from pathlib import Path

import pytest

from remask.errors import UserError
from remask.files import bounds
from remask.files.bounds import open_regular, read_file, unfolds_to
from remask.files.tensors import content_of
from remask.images.sources.files import files_under
from remask.images.sources.opening import open_source


def reason(path: Path | str, most: int = 1000) -> str:
    with pytest.raises(OSError) as error:
        read_file(path, most)
    return error.value.strerror or ""


def test_a_file_is_read_whole_up_to_the_bound(tmp_path: Path) -> None:
    for size in (0, 1, 999, 1000):
        (tmp_path / "x").write_bytes(bytes(size))
        assert read_file(tmp_path / "x", 1000) == bytes(size)
    (tmp_path / "x").write_bytes(bytes(1001))
    assert reason(tmp_path / "x") == "1,001 bytes are more than the 1,000 that such a file may have"


def test_pipes_devices_sockets_and_links_to_them_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        os.symlink("pipe", "link")
        os.symlink("/dev/zero", "zero.png")
        assert reason("pipe") == reason("link") == "no regular file but a pipe"
        assert reason("/dev/zero") == reason("zero.png") == "no regular file but a device"
        assert reason("socket") == "no regular file but a socket or a device"
    assert reason("a\0b") == "a name with a NUL byte"
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)


def test_a_sparse_file_is_refused_by_its_size_before_it_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "x.png", "wb") as file:
        file.truncate(5 << 30)
    assert "5,368,709,120 bytes are more" in reason(tmp_path / "x.png", bounds.MOST_ENCODED)
    source = open_source(str(tmp_path / "x.png"))
    with pytest.raises(OSError, match="more than"):
        source.read(0)


def test_a_file_whose_size_is_not_known_is_read_to_its_bound() -> None:
    """Files of /proc have a size of 0 and may have no end."""
    assert read_file("/proc/self/status", 1 << 20).startswith(b"Name:")
    assert reason("/proc/self/status", 10).endswith("more than the 10 that such a file may have")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "gone"):
        with pytest.raises(OSError):
            open_regular(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_links_to_pipes_are_left_out_of_a_folder_and_links_to_nothing_stay(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("pipe.png", tmp_path / "a.png")
    os.symlink("/dev/zero", tmp_path / "b.png")
    os.symlink("nothing", tmp_path / "c.png")
    assert files_under(str(tmp_path)) == ["c.png"]


def test_a_picture_that_becomes_a_pipe_is_an_unusable_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "l.txt").write_text("a.png\npipe.png\n")
    os.mkfifo(tmp_path / "pipe.png")
    listed = open_source(str(tmp_path / "l.txt"))
    with pytest.raises(OSError, match="no regular file but a pipe"):
        listed.read(1)
    folder = open_source(str(tmp_path))
    os.unlink(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="no regular file but a pipe"):
        folder.read(0)


@pytest.mark.parametrize("name", ["x.txt", "x.tar", "x.parquet", "x.remask", "x.npz"])
def test_a_source_that_is_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError):
        open_source(str(tmp_path / name))


def test_weights_behind_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pth")
    with pytest.raises(UserError, match="cannot be read: no regular file but a pipe"):
        content_of(tmp_path / "x.pth")


def test_what_unfolds_is_compared_with_what_lies_on_the_disk() -> None:
    free = bounds.UNFOLDED_FREE
    assert unfolds_to(free, 0) is None
    assert unfolds_to(free + 8 * 1000, 1000) is None
    assert unfolds_to(free + 8 * 1000 + 1, 1000) == f"it would unfold to {free + 8001:,} bytes, from 1,000 on the disk"


def test_the_error_number_of_what_is_no_regular_file_tells_it_from_one_that_is_gone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError) as error:
        open_regular(tmp_path / "pipe")
    assert error.value.errno == errno.EINVAL
