"""files: folders, list files and names of every kind."""

import tarfile
from pathlib import Path

import pytest

from remask.errors import UserError
from remask.images.sources.files import files_under, printable
from remask.images.sources.opening import open_source


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def names(spec: Path) -> list[str]:
    source = open_source(str(spec))
    return [source.where(i).removeprefix(f"{spec}/") for i in range(len(source))]


def test_flat_folder_in_sorted_order(tmp_path: Path) -> None:
    put(tmp_path, "b.JPG", "a.png", "c.JpEg", ".hidden.jpg", "notes.md", "._a.png", "__MACOSX/a.png")
    assert names(tmp_path) == ["a.png", "b.JPG", "c.JpEg"]
    source = open_source(str(tmp_path), limit=2)
    assert len(source) == 2
    assert source.read(1) == b"b.JPG"
    assert source.labels is None
    assert source.classes is None
    assert source.name == str(tmp_path)


def test_class_folders_give_labels(tmp_path: Path) -> None:
    put(tmp_path, "dog/1.jpg", "cat/2.jpg", "cat/deep/3.jpg", "emu/.hidden.jpg", ".ipynb_checkpoints/x.jpg")
    source = open_source(str(tmp_path), labelled=True)
    assert names(tmp_path) == ["cat/2.jpg", "cat/deep/3.jpg", "dog/1.jpg"]
    assert source.labels == [0, 0, 1]
    assert source.classes == ["cat", "dog"]
    assert open_source(str(tmp_path), limit=1).labels == [0]


@pytest.mark.parametrize(
    "files",
    [["cat/1.jpg", "dog/2.jpg", "loose.jpg"], ["cat/1.jpg", "cat/2.jpg"], ["train2017/1.jpg", "val2017/2.jpg"]],
    ids=["a loose picture", "one folder", "splits"],
)
def test_folders_that_are_no_classes(tmp_path: Path, files: list[str]) -> None:
    put(tmp_path, *files)
    assert open_source(str(tmp_path)).labels is None
    with pytest.raises(UserError, match="has no labels"):
        open_source(str(tmp_path), labelled=True)


def test_links_cannot_loop(tmp_path: Path) -> None:
    put(tmp_path, "real/1.jpg", "sub/2.jpg")
    (tmp_path / "again").symlink_to(tmp_path / "real")
    (tmp_path / "real/up").symlink_to("..")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "sub/link.jpg").symlink_to("../real/1.jpg")
    assert files_under(str(tmp_path)) == ["gone.jpg", "real/1.jpg", "self", "sub/2.jpg", "sub/link.jpg"]


def test_a_linked_folder_outside_is_followed(tmp_path: Path) -> None:
    put(tmp_path, "far/1.jpg", "here/2.jpg")
    (tmp_path / "here/cat").symlink_to(tmp_path / "far")
    assert names(tmp_path / "here") == ["2.jpg", "cat/1.jpg"]


def test_weird_names(shared: Path, tmp_path: Path) -> None:
    with tarfile.open(shared / "data/nasty/weird_names.tar") as tar:
        tar.extractall(tmp_path, filter="tar")
    found = names(tmp_path / "weird")
    assert len(found) == 25
    assert all(name.isprintable() for name in found)
    assert {"класс/new\\nline.jpg", "класс/latin1_caf\\xe9.jpg", "class a/#hash.jpg", "nested/deep/y.jpg"} <= set(found)
    source = open_source(str(tmp_path / "weird"))
    assert sum(source.read(i)[:2] == b"\xff\xd8" for i in range(25) if "dangling" not in source.where(i)) == 24


def test_printable() -> None:
    assert printable("plain é.jpg") == "plain é.jpg"
    assert printable("a\nb\t\x1b.jpg") == "a\\nb\\t\\x1b.jpg"
    assert printable("caf\udce9") == "caf\\xe9"


def test_list_file(tmp_path: Path) -> None:
    put(tmp_path, "in/a b.jpg", "in/c.png", "d 7.jpg")
    listed = tmp_path / "list.txt"
    listed.write_text("﻿# all of them\n\nin/a b.jpg\t3\r\nin/c.png 0\n" + f"{tmp_path}/d 7.jpg 12\n", encoding="utf-8")
    source = open_source(str(listed), labelled=True)
    assert source.labels == [1, 0, 2]
    assert source.classes == ["0", "3", "12"]
    assert [source.read(i) for i in range(3)] == [b"in/a b.jpg", b"in/c.png", b"d 7.jpg"]
    assert source.where(0) == "in/a b.jpg"
    assert open_source(str(listed), limit=2).classes == ["0", "3"]
    listed.write_text("in/c.png\n")
    assert open_source(str(listed)).labels is None


@pytest.mark.parametrize(("text", "line"), [("# nothing\n", "names no images"), ("a.jpg 1\nb.jpg\n", "b.jpg")])
def test_list_file_mistakes(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=line):
        open_source(str(tmp_path / "list.txt"))


def test_a_single_picture(tmp_path: Path) -> None:
    put(tmp_path, "one.PNG")
    source = open_source(str(tmp_path / "one.PNG"))
    assert len(source) == 1
    assert source.read(0) == b"one.PNG"


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "b.csv", "c")
    with pytest.raises(UserError, match=r"3 other files \(\.csv 2, no extension 1\); looked for \.jpg \.jpeg"):
        open_source(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it is empty"):
        open_source(str(tmp_path / "empty"))
