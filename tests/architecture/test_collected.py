"""No test is passed over without a word: pytest skips folders of some names, "build" among them, unless it is told."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.architecture.source import ROOT
from tests.conftest import LONG, rank


def test_every_test_file_is_collected(pytestconfig: pytest.Config) -> None:
    skipped = pytestconfig.getini("norecursedirs")
    files = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(files) >= 150
    assert not [file for file in files if passed_over(file, skipped)]
    assert passed_over(Path("tests/.cache/test_x.py"), skipped)


def test_what_begins_first_is_there(request: pytest.FixtureRequest) -> None:
    """And comes before all else, in the order in which it is listed."""
    assert all((ROOT / entry).exists() for entry in LONG)
    ranks = [rank(item.nodeid) for item in request.session.items]
    assert ranks == sorted(ranks)
    assert (
        rank("tests/faults/test_soak.py::test_x") < rank("tests/faults/test_power_cuts.py::test_x") < rank("tests/unit")
    )


def passed_over(file: Path, patterns: list[str]) -> bool:
    return any(fnmatch(folder, pattern) for folder in file.parts[:-1] for pattern in patterns)
