"""No test is passed over without a word: pytest skips folders of some names, "build" among them, unless it is told."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.architecture.source import ROOT


def test_every_test_file_is_collected(pytestconfig: pytest.Config) -> None:
    skipped = pytestconfig.getini("norecursedirs")
    files = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(files) >= 150
    assert not [file for file in files if passed_over(file, skipped)]
    assert passed_over(Path("tests/.cache/test_x.py"), skipped)


def passed_over(file: Path, patterns: list[str]) -> bool:
    return any(fnmatch(folder, pattern) for folder in file.parts[:-1] for pattern in patterns)
