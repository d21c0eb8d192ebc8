"""What the documents show can be typed: every command parses, every Python block runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.commands import blocks, fault_in_remask, make_targets, shell_commands
from tests.architecture.source import ROOT

README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SECONDS = 600  # at most, on a machine that does other things too, for one Python block, its imports included

written = pytest.mark.skipif(len(README.read_text()) < 500, reason="README.md is still a stub")


def commands_of(document: Path) -> list[list[str]]:
    shell = blocks(document.read_text(), "bash", "sh", "console", "shell")
    return [words for block in shell for words in shell_commands(block)]


@written
def test_readme_shows_the_main_commands() -> None:
    shown = [" ".join(words[:2]) for words in commands_of(README)]
    assert {"make demo", "make test", "remask pretrain"} <= set(shown)


@written
def test_readme_shows_python() -> None:
    assert blocks(README.read_text(), "python")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_remask_commands_parse(document: Path) -> None:
    asked = [words for words in commands_of(document) if words[0] == "remask"]
    assert not [fault for words in asked if (fault := fault_in_remask(words))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_exist(document: Path) -> None:
    asked = {word for words in commands_of(document) if words[0] == "make" for word in words[1:] if "=" not in word}
    assert asked <= make_targets(ROOT / "Makefile")


PYTHON = [*blocks(README.read_text(), "python"), "\n".join(blocks((ROOT / "docs" / "python.md").read_text(), "python"))]
"""Each block of the README, and those of docs/python.md one after the other, as that page says."""


@pytest.mark.parametrize("block", PYTHON, ids=[f"block{i}" for i in range(len(PYTHON))])
def test_python_block_runs(block: str, tmp_path: Path) -> None:
    """In a fresh interpreter and an empty folder, as a reader would paste it."""
    script = tmp_path / "block.py"
    script.write_text(block)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_check_sees_a_wrong_command() -> None:
    assert fault_in_remask(["remask", "pretrian"])
    assert fault_in_remask(["remask", "pretrain", "--recpie", "demo"])
    assert fault_in_remask(["remask", "pretrain", "--recipe"])
    assert not fault_in_remask(["remask", "pretrain", "--recipe", "demo", "--out", "runs/x"])


def test_shell_blocks_are_read_as_written() -> None:
    block = "$ remask show \\\n  demo  # the equation\nOMP_NUM_THREADS=1 make test && remask doctor | head"
    assert shell_commands(block) == [["remask", "show", "demo"], ["make", "test"], ["remask", "doctor"], ["head"]]
