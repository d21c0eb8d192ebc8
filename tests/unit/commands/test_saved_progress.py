"""saved_progress.py: what a killed evaluation had computed is taken up where it is intact, and dropped with a line."""

from pathlib import Path

import pytest
import torch

from remask.commands.saved_progress import MARK, SavedProgress

REACHED = {"rows": torch.arange(6), "found": {"top1": 50.0}}


def test_what_was_stored_comes_back_under_its_key_alone(tmp_path: Path) -> None:
    SavedProgress(tmp_path, "linprobe", {"k": 1}).write(REACHED)
    found = SavedProgress(tmp_path, "linprobe", {"k": 1}).read()
    assert torch.equal(found["rows"], REACHED["rows"])  # type: ignore[arg-type]
    assert found["found"] == REACHED["found"]
    assert SavedProgress(tmp_path, "linprobe", {"k": 2}).read() == {}
    assert [path.name for path in (tmp_path / "eval").iterdir()] == [".linprobe.part"]


def test_every_flipped_byte_is_noticed_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = SavedProgress(tmp_path, "linprobe", {"k": 1})
    progress.write(REACHED)
    assert progress.path
    content = progress.path.read_bytes()
    assert content.startswith(MARK)
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1
        progress.path.write_bytes(flipped)
        assert progress.read() == {}, place
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "is damaged, so this evaluation begins from the start" in said


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x02]q\x00.", b"PK\x03\x04", MARK])
def test_what_is_no_such_file_blocks_nothing(tmp_path: Path, content: bytes) -> None:
    progress = SavedProgress(tmp_path, "linprobe", {"k": 1})
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / ".linprobe.part").write_bytes(content)
    assert progress.read() == {}


def test_a_file_of_an_earlier_version_is_taken_up(tmp_path: Path) -> None:
    progress = SavedProgress(tmp_path, "linprobe", {"k": 1})
    (tmp_path / "eval").mkdir()
    torch.save({"key": progress.key, "reached": REACHED}, tmp_path / "eval" / ".linprobe.part")
    assert torch.equal(progress.read()["rows"], REACHED["rows"])  # type: ignore[arg-type]
