"""files/records.py: all of a file or what was there, and lines that a killed run left."""

from pathlib import Path

import pytest

from remask.files.records import atomic_write, read_json_lines


def test_a_file_is_replaced_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    for text in ("first", "second"):
        with atomic_write(path) as part:
            part.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_after_an_error_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)  # no room in the name for an ending
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as part:
            part.write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_lines_that_are_cut_off_or_damaged_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_json_lines(path) == []
    path.write_bytes(b'{"step": 1}\nhalf{\n[3]\n\xff\n{"step": 2}\n{"step": 3}')
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
