"""files/locking.py: one writer of a run, whose lock ends with it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remask.errors import UserError
from remask.files import locking
from remask.files.locking import NAME, lock_run, open_lock, unlocking, was_locked

HOLDS = """
import os, sys, time
from pathlib import Path
from remask.files.locking import lock_run
lock_run(Path(sys.argv[1]))
if os.fork() == 0:
    time.sleep(60)  # as a loader's process that outlives its parent for a while
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that has the lock, with a child."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout
    assert process.stdout.readline() == "locked\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_the_second_is_told_who_has_it(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(UserError, match=f"is being written by process {holder.pid} on .* wait until it ends"):
        lock_run(tmp_path)
    assert (tmp_path / NAME).read_bytes() == before


def test_a_dead_process_has_no_lock_even_if_its_children_live(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    holder.kill()
    deadline = time.monotonic() + 20
    while holder.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with unlocking():
        lock_run(tmp_path)
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_it_is_free_after_the_context_and_may_be_repeated_inside(tmp_path: Path) -> None:
    with unlocking():
        lock_run(tmp_path)
        lock_run(tmp_path)
        with unlocking():
            lock_run(tmp_path)
        assert tmp_path.resolve() in locking._LOCKED
    assert tmp_path.resolve() not in locking._LOCKED
    assert (tmp_path / NAME).read_bytes() == b""
    assert was_locked(tmp_path)


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"):
        lock_run(tmp_path)
    with pytest.raises(OSError, match="symbolic link"):
        open_lock(tmp_path / NAME)
    assert (tmp_path / "precious").read_text() == "mine"


def test_where_there_are_no_locks_it_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locking.fcntl, "lockf", none)
    with unlocking():
        lock_run(tmp_path)
    assert "a file system without locks: start no second process" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["somebody else's", "[]", "{}"])
def test_a_lock_of_another_program_is_not_ours(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    assert not was_locked(tmp_path)
