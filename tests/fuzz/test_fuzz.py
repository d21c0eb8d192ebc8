"""A fixed slice of the fuzzing, and everything that it ever found; `make fuzz` runs the whole."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fuzz import campaign
from tests.fuzz.campaign import FOUND
from tests.fuzz.mutate import mutate_bytes
from tests.fuzz.targets import TARGETS, Target, made, seeds_of

FAST, SLOW = "600", "120"
"""Inputs of each fast and slow target here, about two minutes on two cores."""


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Without the checks of shapes on every call, which would raise before the readers do."""
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)


@pytest.mark.slow
def test_a_slice_of_every_target_and_all_that_was_found() -> None:
    done = fuzz("--inputs", FAST, "--slow-inputs", SLOW, "--replay")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    counts = {line.split()[0]: line.split()[1:3] for line in done.stdout.splitlines() if line.split()[0] in TARGETS}
    assert counts.keys() == {name for name, target in TARGETS.items() if not target.pending}
    for name, (inputs, taken) in counts.items():
        assert int(inputs.replace(",", "")) >= int(SLOW), name
        assert int(taken.replace(",", "")) > 0, (
            f"{name}: no input of {inputs} was taken, so that nothing but refusals is tried"
        )


def test_an_input_is_a_function_of_its_number() -> None:
    for name in TARGETS:
        seeds = seeds_of(name)
        assert [made(name, number, seeds) for number in range(5)] == [made(name, number, seeds) for number in range(5)]


def test_the_seeds_are_few() -> None:
    files = [path for path in (Path(__file__).parent / "seeds").rglob("*") if path.is_file()]
    assert 80 < len(files) < 200
    assert sum(path.stat().st_size for path in files) <= 300_000


def test_what_was_found_is_small() -> None:
    assert all(path.stat().st_size <= 100_000 for path in FOUND.rglob("*") if path.is_file())


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="memory is measured by /proc")
def test_all_that_was_found_is_read_although_one_crashes_and_one_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(data: bytes, folder: Path) -> None:
        if data == b"crash":
            os._exit(3)  # as a crash ends it, without a trace on the screen
        if data == b"hang":
            time.sleep(100)
        if data == b"fault":
            raise ZeroDivisionError

    (tmp_path / "planted").mkdir()
    for number, content in enumerate((b"", b"crash", b"", b"hang", b"fault", b"")):
        (tmp_path / "planted" / str(number)).write_bytes(content)
    monkeypatch.setitem(TARGETS, "planted", Target(planted, mutate_bytes))
    monkeypatch.setattr(campaign, "FOUND", tmp_path)
    monkeypatch.setattr(campaign, "WALL", 5.0)
    monkeypatch.setattr(campaign, "seeds_of", lambda name: [])
    assert campaign.replayed(["planted"]) == {
        "planted": ["1: crash, exit 3", "3: no end within 5 s", "4: ZeroDivisionError test_fuzz.planted"]
    }


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="memory is measured by /proc")
def test_the_harness_finds_what_it_looks_for() -> None:
    """A wrong exception, a crash, an input without an end, one that takes too long, one of too much memory."""
    done = subprocess.run(
        [sys.executable, "-c", PLANTED], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.split("\n")[:6] == [
        "0 ZeroDivisionError <string>.planted", "1 crash, exit -11", "2 no end within 1 s", "3 more than 2 s",
        "4 more than 1 GB", "taken 3 refused 1",
    ], done.stdout + done.stderr  # fmt: skip


PLANTED = """
import os, signal, time
from tests.fuzz import campaign, targets
from tests.fuzz.campaign import Result
from remask.errors import UserError
def planted(data, folder):
    number = int(data)
    if number == 0: 1 / 0
    if number == 1: os.kill(os.getpid(), signal.SIGSEGV)
    if number == 2: time.sleep(100)
    if number == 3:
        begin = time.process_time()
        while time.process_time() < begin + 2.1: pass
    if number == 4:
        campaign.SECONDS = 60.0  # a slow machine takes more than two seconds to give a gigabyte
        len(bytearray(os.urandom(1 << 20)) * 1100)
    if number == 5: raise UserError("no")
targets.TARGETS["planted"] = targets.Target(planted, None)
campaign.made = lambda name, number, seeds: str(number).encode()
campaign.seeds_of = lambda name: []
campaign.WALL = 1.0
campaign.SECONDS = 2.0
campaign.STEP = 0.1
results = Result()
for name, result in campaign.run(["planted"], {"planted": 3}, 1, {}):
    results.add(result)
campaign.WALL = 60.0
for name, result in campaign.run(["planted"], {"planted": 7}, 1, {"planted": 3}):
    results.add(result)
for kind, numbers in sorted(results.found.items(), key=lambda item: item[1]):
    print(*numbers, kind)
print("taken", results.taken, "refused", results.refused)
"""
