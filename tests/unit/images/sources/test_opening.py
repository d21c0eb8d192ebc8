"""sources: one word opens a source, or one line says why not."""

import subprocess
import sys
from pathlib import Path

import pytest

from remask.errors import UserError
from remask.images.sources.opening import open_source


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("cifra10", "did you mean cifar10"),
        ("photo", "did you mean photos"),
        ("no/such/folder", "no file, folder or named set 'no/such/folder' .*named sets: digits, crops, photos"),
        ("", "no file, folder or named set"),
        ("x-{000..003}.tar", "there is no x-000.tar"),
        ("set:nothing", "no file, folder or named set 'set:nothing'"),
    ],
)
def test_nothing_there(spec: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=line) as error:
        open_source(spec)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one(limit: int) -> None:
    with pytest.raises(UserError, match="limit"):
        open_source("digits", limit=limit)


def test_a_name_that_is_a_folder_as_well_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/a.jpg").write_bytes(b"A")
    with pytest.raises(UserError, match=r"write \./digits for the path, set:digits for the set"):
        open_source("digits")
    assert len(open_source("./digits")) == 1
    assert len(open_source("set:digits")) == 1797
    assert len(open_source("set:digits:val")) == 355


def test_labelled_needs_labels() -> None:
    with pytest.raises(UserError, match="photos has no labels"):
        open_source("photos", labelled=True)


def test_an_unreadable_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"x\.zip is no image, \.txt list, \.tar, \.parquet or \.remask"):
        open_source(str(tmp_path / "x.zip"))
    (tmp_path / "y.csv").write_bytes(b"1")
    with pytest.raises(UserError, match=r"matches \.csv, \.zip"):
        open_source(f"{tmp_path}/*")


def test_importing_images_is_light() -> None:
    heavy = "('torchvision', 'pyarrow', 'skimage', 'sklearn', 'datasets', 'timm')"
    code = f"import sys, remask.images; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
