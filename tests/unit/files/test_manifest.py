"""files/manifest.py: every changed bit of every file is noticed, and named."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from remask.errors import UserError
from remask.files.manifest import NAME, damage, refuse_damaged, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "state.json").write_text('{"step": 3}')
    write_manifest(tmp_path)
    return tmp_path


def test_what_was_written_is_intact(folder: Path) -> None:
    assert damage(folder) == []
    (folder / "another").write_text("added by somebody")
    assert damage(folder) == []
    refuse_damaged(folder)


def test_without_a_manifest_nothing_is_known(tmp_path: Path) -> None:
    assert damage(tmp_path) is None
    refuse_damaged(tmp_path)


@pytest.mark.parametrize("place", [0, 511, 1023])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_names_the_file(folder: Path, place: int, bit: int) -> None:
    assert damage(folder) == []  # what was found intact is looked at again when it changes
    content = bytearray((folder / "weights").read_bytes())
    content[place] ^= 1 << bit
    (folder / "weights").write_bytes(content)
    assert damage(folder) == ["weights is damaged: it is not what was written"]
    with pytest.raises(UserError, match=r"weights is damaged.*export the run again"):
        refuse_damaged(folder)


def test_a_file_that_is_cut_off_or_missing_is_named(folder: Path) -> None:
    (folder / "weights").write_bytes(b"cut")
    (folder / "state.json").unlink()
    faults = damage(folder)
    assert faults
    assert faults[0].startswith("state.json cannot be read: No such file")
    assert faults[1] == "weights is damaged: it has 3 bytes, not 1,024"


def test_every_flipped_bit_of_the_manifest_is_noticed_or_harmless(folder: Path) -> None:
    content = (folder / NAME).read_bytes()
    noticed = 0
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            (folder / NAME).write_bytes(flipped)
            faults = damage(folder)
            assert faults in ([], [f"{NAME} is damaged"]), (place, bit)
            noticed += bool(faults)
    assert noticed > 0.9 * 8 * len(content)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"files": 3, "sha256": ""}', b"\xff", b"[" * 100_000])
def test_a_manifest_of_anything_else_is_damaged(folder: Path, content: bytes) -> None:
    (folder / NAME).write_bytes(content)
    assert damage(folder) == [f"{NAME} is damaged"]


@pytest.mark.parametrize("name", ["/dev/zero", "../weights", "a/b", "pipe", "x\0", ".", ""])
def test_names_that_are_no_file_of_the_folder_are_never_waited_for(folder: Path, name: str) -> None:
    """Their manifest has the right digest: whoever writes a checkpoint can make one."""
    os.mkfifo(folder / "pipe")
    files = {name: {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    (folder / NAME).write_text(json.dumps({"files": files, "sha256": digest}))
    faults = damage(folder)
    assert faults
    assert any(word in faults[0] for word in ("is damaged", "cannot be read"))


def test_a_manifest_that_is_a_pipe_is_none(folder: Path) -> None:
    (folder / NAME).unlink()
    os.mkfifo(folder / NAME)
    assert damage(folder) is None
