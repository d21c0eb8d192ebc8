"""Runs every golden test once per root and file. A test module names its SYSTEM and, in FILES, fixture -> pattern."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.golden.vectors import File, Folder, roots

OPENED = pytest.StashKey[dict[Path, int]]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    system, files = getattr(metafunc.module, "SYSTEM", None), getattr(metafunc.module, "FILES", {})
    folders = {name: Folder(root / system) for name, root in roots().items()} if system else {}
    for fixture in metafunc.fixturenames:
        if fixture == "folder":
            found = {name: folder for name, folder in folders.items() if folder.path.is_dir()}
        elif fixture in files:
            found = {
                f"{name}-{path.stem}": File(folder, path.name)
                for name, folder in folders.items()
                for path in sorted(folder.path.glob(files[fixture]))
            }
        else:
            continue
        absent = pytest.param(None, marks=pytest.mark.skip(f"no {files.get(fixture, 'vectors')} of {system}"))
        metafunc.parametrize(fixture, found.values() or [absent], ids=list(found) or ["absent"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks which folders were compared comes last."""
    items.sort(key=lambda item: "opened" in getattr(item, "fixturenames", ()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Count per folder the tests that passed: those that compared something and were not skipped."""
    report = yield
    if report.when == "call":
        opened = item.config.stash.setdefault(OPENED, {})
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Folder | File):
                path = value.path if isinstance(value, Folder) else value.folder.path
                opened[path] = opened.get(path, 0) + report.passed
    return report


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> dict[Path, int]:
    """Folders that tests have used so far, with the number of tests that passed."""
    return request.config.stash.setdefault(OPENED, {})
