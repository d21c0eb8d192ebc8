"""The repository names no package index and no machine's folders; its lock and its build hold no address."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

# Written so that this file does not match itself.
INDEX = re.compile(rb"[p]ypi\.(org|io)|[p]ythonhosted|[d]ownload\.pytorch\.org/whl|[a]naconda\.org|find[-]links", re.I)
MACHINE = re.compile(rb"(?<![\w.~$}])/(?:work|root|home/\w+|Users/\w+)/")
WITHOUT_ADDRESSES = ("requirements.lock", "Makefile", ".ci/", ".pre-commit-config.yaml")


def tracked() -> list[Path]:
    """What git tracks, and what it would: new files that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def hits(pattern: re.Pattern[bytes], paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}, line {number}: {found.group().decode(errors='replace')}"
        for path in paths
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if (found := pattern.search(line))
    ]


def test_no_index_host() -> None:
    paths = tracked()
    assert len(paths) >= 30
    assert not hits(INDEX, paths)


def test_no_machine_path() -> None:
    assert not hits(MACHINE, tracked())


def test_lock_and_build_hold_no_address() -> None:
    paths = [path for path in tracked() if str(path.relative_to(ROOT)).startswith(WITHOUT_ADDRESSES)]
    assert {"requirements.lock", "Makefile", "run"} <= {path.name for path in paths}
    assert not hits(re.compile(rb":/" rb"/"), paths)


def test_lock_holds_exact_versions_with_hashes() -> None:
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=[a-z0-9])", text.split("make lock\n", 1)[1])
    names = {entry.split("==")[0] for entry in entries}
    assert {"torch", "torchvision", "timm", "hatchling", "editables", "pytest", "ruff", "mypy"} <= names
    assert not [entry for entry in entries if not re.match(r"[a-z0-9._-]+==[\w.]+[ \\]", entry)]
    assert not [entry for entry in entries if "--hash=sha256:" not in entry]
    assert "+cpu" not in text


def test_patterns_find_what_they_are_for() -> None:
    assert INDEX.search(b"--index-url https://" + b"py" + b"pi.org/simple")
    assert MACHINE.search(b"see /" + b"work/main/x")
    assert not MACHINE.search(b"https://example.net/" + b"work/x")
