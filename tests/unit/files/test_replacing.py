"""files/records.py and replacing.py: permissions, names that nobody foresees, leftovers, folders with others' files."""

import os
import re
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from remask.files import records, replacing
from remask.files.locking import try_lock
from remask.files.manifest import NAME, damage, write_manifest
from remask.files.records import atomic_folder, atomic_write, leftovers, temporary_beside
from remask.files.replacing import link_beside, replaced_folder, write_bytes


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_is_obeyed_whoever_writes(tmp_path: Path, umask: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file", b"x")
        with atomic_folder(tmp_path / "folder") as tmp:
            save_file({"a": torch.zeros(2)}, tmp / "weights")  # 0600 by itself
            write_manifest(tmp)
    finally:
        os.umask(before)
    files = [tmp_path / "file", tmp_path / "folder" / "weights", tmp_path / "folder" / NAME]
    assert {mode(file) for file in files} == {expected}


def test_temporary_names_are_random_and_a_planted_link_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, precious = tmp_path / "a.json", tmp_path / "precious"
    precious.write_text("mine")
    assert temporary_beside(path) != temporary_beside(path)
    assert re.fullmatch(r"\.a\.json\.[0-9a-f]{16}\.part", temporary_beside(path).name)
    monkeypatch.setattr(records.secrets, "token_hex", lambda n: "0" * 2 * n)  # as if somebody had foreseen it
    temporary_beside(path).symlink_to(precious)
    with pytest.raises(FileExistsError):
        write_bytes(path, b"ours")
    assert precious.read_text() == "mine"


def test_what_a_killed_process_left_goes_and_what_somebody_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    dead, alive, earlier = temporary_beside(path), temporary_beside(path), tmp_path / ".a.json.part"
    for file in (dead, alive, earlier):
        file.write_text("half")
    other = tmp_path / ".b.json.0123456789abcdef.part"
    other.touch()
    descriptor = os.open(alive, os.O_RDONLY)
    try:
        assert try_lock(descriptor)
        write_bytes(path, b"new")
    finally:
        os.close(descriptor)
    assert {file.name for file in tmp_path.iterdir()} == {"a.json", alive.name, other.name}
    assert leftovers(path) == [alive]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    if not exchanges:
        monkeypatch.setattr(records, "exchange", lambda one, other: False)
    for names in ({"a", "b"}, {"c"}):
        with atomic_folder(tmp_path / "folder") as tmp:
            for name in names:
                (tmp / name).touch()
        assert {file.name for file in (tmp_path / "folder").iterdir()} == names
    with pytest.raises(ValueError, match="stop"), atomic_folder(tmp_path / "folder") as tmp:
        raise ValueError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["c"]


def export(folder: Path, text: str) -> None:
    with replaced_folder(folder, {"a", "b", NAME}) as tmp:
        (tmp / "a").write_text(text)
        (tmp / "b").write_text(text)
        write_manifest(tmp)


def test_others_files_stay_and_no_half_is_taken_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(tmp_path, "old")
    (tmp_path / "thesis.txt").write_text("mine")
    export(tmp_path, "new")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", NAME, "thesis.txt"}
    assert (tmp_path / "b").read_text() == "new"
    assert damage(tmp_path) == []
    real, calls = os.replace, iter(range(9))

    def killed(one: Path, other: Path) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        real(one, other)

    monkeypatch.setattr(replacing.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, "3rd")
    assert damage(tmp_path) == ["b is damaged: it is not what was written"]


def test_the_current_folder_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    export(Path(), "new")
    assert tmp_path.stat().st_ino == before
    assert damage(tmp_path) == []


def test_a_second_name_shares_the_content_and_is_replaced(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_bytes(tmp_path / "probe.json", text.encode())
        link_beside(tmp_path / "probe.json", tmp_path / "probe-digits.json")
        link_beside(tmp_path / "probe.json", tmp_path / "probe-digits.json")
        assert (tmp_path / "probe-digits.json").read_text() == text
    assert {path.name for path in tmp_path.iterdir()} == {"probe.json", "probe-digits.json"}


def test_an_error_of_writing_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path) as tmp:
        tmp.write_text("x")
