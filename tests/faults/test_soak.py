"""A slice of `make soak`: a few injections of the faults that are quick, all survived."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.__main__ import BEGIN, END, table, write
from tests.faults.campaign import FAULTS, jobs
from tests.faults.injecting import Result
from tests.faults.subjects import Outcome, images_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and fork")


@pytest.mark.slow
def test_a_slice_of_the_soak_is_survived(tmp_path: Path, repo: Path) -> None:
    command = [sys.executable, "-m", "tests.faults", "--slice", "--folder", str(tmp_path / "soak")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=repo, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (together,) = [line for line in done.stdout.splitlines() if line.startswith("| together")]
    injected, survived, *differences = [int(cell) for cell in together.split("|")[2:-1]]
    assert injected == survived == sum(fault.slice for fault in FAULTS.values())
    assert differences == [0, 0, 0]


def test_what_a_resume_discards_is_not_counted(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.write_text("[0, [1, 2]]\n[1, [3]]\n[2, [4]]\n[1, null]\n[1, [3]]\n[2, [5]]\n")
    assert images_of(shown) == {0: [1, 2], 1: [3], 2: [5]}
    assert not Outcome(lost=1).same


def test_every_injection_is_planned_once_and_any_beginning_is_spread() -> None:
    planned = jobs(["two writers", "clock jumps"], {"two writers": 100, "clock jumps": 6})
    assert sorted(planned) == sorted(
        [("two writers", i, 100) for i in range(100)] + [("clock jumps", i, 6) for i in range(6)]
    )
    first = [number for name, number, _ in planned[:20] if name == "two writers"]
    assert min(first) < 25
    assert max(first) > 75


def test_the_table_has_all_faults_and_replaces_the_section(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    results = [Result("two writers", 0, "now", 1), Result("two writers", 1, "later", 0, lost=3, why="both wrote")]
    write(page, table(results))
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "| two writers (2 of 10 were tried) | 2 | 1 | 3 | 0 | 0 |" in text
    assert "- two writers, later: both wrote" in text
    assert "old" not in text
    assert text.count("not run") == len(FAULTS) - 1
