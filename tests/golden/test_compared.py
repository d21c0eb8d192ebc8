"""Runs after all other golden tests: a folder whose every test was skipped proves nothing."""

from pathlib import Path

import pytest


def test_something_was_compared_in_every_folder(opened: dict[Path, int]) -> None:
    if not opened:
        pytest.skip("no golden test has run")
    idle = [str(folder) for folder, passed in opened.items() if not passed]
    assert not idle, f"nothing was compared in {', '.join(idle)}"
