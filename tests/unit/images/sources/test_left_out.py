"""left_out: what sources do not take is counted, by reason; patterns say what a user leaves out."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remask.downstream.detect.coco import open_coco
from remask.downstream.segment.mask_source import open_masks
from remask.errors import UserError
from remask.images.sources.left_out import Patterns, listed, notes, relative_pattern
from remask.images.sources.opening import open_source
from remask.images.sources.subset import Subset
from remask.images.tools.packing import Form, pack


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def names(source: Any, root: Path) -> list[str]:
    return [source.where(i).removeprefix(f"{root}/") for i in range(len(source))]


def test_a_line_of_counts() -> None:
    assert listed({}) == ""
    counts = {".json files": 1, "hidden files": 1200, "excluded by x*": 0, "links to nothing": 1}
    assert listed(counts) == "0 excluded by x*, 1,200 hidden files, 1 .json file, 1 link to nothing"
    assert listed({f".{n} files": 9 - n for n in range(9)}).endswith("4 .5 files, 6 others")


def test_folders(tmp_path: Path) -> None:
    put(
        tmp_path,
        "a.jpg",
        "b.json",
        "c.JSON",
        "d",
        "x/e.txt",
        ".h.jpg",
        ".git/x.jpg",
        "__MACOSX/y.jpg",
        "x/f.png",
        "s.tar",
    )
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "again").symlink_to(tmp_path / "x")
    source = open_source(str(tmp_path))
    assert names(source, tmp_path) == ["a.jpg", "x/f.png"]
    assert source.left_out == {
        ".json files": 2, "files without extension": 1, ".txt files": 1, ".tar files": 1, "hidden files": 1,
        "hidden folders": 2, "special files, such as pipes": 1, "folders that a second link names": 1,
    }  # fmt: skip
    assert Subset(source, [1]).left_out == source.left_out
    assert notes(source)[0].startswith(f"{tmp_path}: left out 2 hidden folders, 2 .json files, ")
    assert notes(open_source("digits")) == []


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["thumbs"], ["a.jpg", "b.png", "in/c.jpg", "in/[x]/e.jpg"]),
        (["*.jpg"], ["b.png", "thumbs/t.png"]),
        (["in/*"], ["a.jpg", "b.png", "thumbs/t.png"]),
        (["in/thumbs"], ["a.jpg", "b.png", "in/[x]/e.jpg", "in/c.jpg", "thumbs/t.png"]),
        (["./in/", "[ab].*"], ["thumbs/t.png"]),
        (["[x]"], ["a.jpg", "b.png", "in/c.jpg", "in/thumbs/d.jpg", "thumbs/t.png"]),
        (["nothing"], ["a.jpg", "b.png", "in/[x]/e.jpg", "in/c.jpg", "in/thumbs/d.jpg", "thumbs/t.png"]),
    ],
)
def test_patterns(tmp_path: Path, patterns: list[str], left: list[str]) -> None:
    put(tmp_path, "a.jpg", "b.png", "in/c.jpg", "in/thumbs/d.jpg", "in/[x]/e.jpg", "thumbs/t.png")
    source = open_source(str(tmp_path), exclude=patterns)
    assert sorted(names(source, tmp_path)) == sorted(left)
    assert {key for key in source.left_out if key.startswith("excluded")} == {f"excluded by {p}" for p in patterns}
    whole = [pattern if "*" in pattern or "[" in pattern else f"{tmp_path}/{pattern}" for pattern in patterns]
    if "/" in patterns[0]:
        assert names(open_source(str(tmp_path), exclude=whole), tmp_path) == names(source, tmp_path)


def test_a_pattern_as_it_was_typed_is_kept_as_it_is_used() -> None:
    assert relative_pattern("in/x/y", "in") == "x/y"
    assert relative_pattern(f"{os.getcwd()}/in/x", "./in/") == "x"
    assert relative_pattern("x/y", "in") == "x/y"
    assert relative_pattern("*.gif", "/") == "*.gif"


def test_an_excluded_folder_is_not_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.jpg", "lost+found/b.jpg")
    scan = os.scandir

    def guarded(path: str) -> Any:
        if path.endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    line = r"cannot list .*/lost\+found: Permission denied; to go on without it, give --exclude lost\+found$"
    with pytest.raises(UserError, match=line):
        open_source(str(tmp_path))
    source = open_source(str(tmp_path), exclude=["lost+found"])
    assert names(source, tmp_path) == ["a.jpg"]
    assert source.left_out == {"excluded by lost+found": 1}


def test_a_source_that_may_not_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(UserError, match="no permission to look at /x/pictures"):
        open_source("/x/pictures")


def test_files_in_a_folder_that_lists_but_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode r--: names are read, and nothing can be said of what bears them."""
    put(tmp_path, "a.jpg", "b.jpg")
    monkeypatch.setattr(os.path, "isfile", lambda path: False)
    assert names(open_source(str(tmp_path)), tmp_path) == ["a.jpg", "b.jpg"]


def test_patterns_of_lists(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("./in/a.jpg 0\nb.jpg 1\n/x/c.jpg 2\n")
    source = open_source(str(tmp_path / "l.txt"), exclude=["in"])
    assert [source.where(i) for i in range(len(source))] == ["b.jpg", "/x/c.jpg"]
    assert source.left_out == {"excluded by in": 1}


@pytest.mark.parametrize("spec", ["digits", "photos", "hf:some/set", "x.parquet", "one.jpg"])
def test_sources_that_have_no_names_to_exclude(tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(put(tmp_path, "x.parquet", "one.jpg"))
    with pytest.raises(UserError, match=f"--exclude is for folders, lists and tars, and {spec} is none: leave it out"):
        open_source(spec, exclude=["a"])


def test_parquet_columns_and_labels_that_are_not_taken(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"left.jpg": [b"L", b"M"], "left": [b"x", b"y"], "image": [b"A", b"B"], "label": [1, None]})
    pq.write_table(table, tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert [source.read(i) for i in range(2)] == [b"A", b"B"]
    assert source.left_out == {
        "pictures of the column left.jpg": 2, "pictures of the column left": 2,
        "class labels, which not every picture has": 1,
    }  # fmt: skip
    pq.write_table(table.drop(["image"]), tmp_path / "y.parquet")
    assert [open_source(str(tmp_path / "y.parquet")).read(i) for i in range(2)] == [b"L", b"M"]


def test_packed_sets_pass_it_on(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"in/{i}.png")
    put(tmp_path / "in", "bad.jpg", "x.json", "y.gif")
    source = open_source(str(tmp_path / "in"), exclude=["*.gif"])
    pack(source, tmp_path / "p.remask", Form("raw", None), max_bad=0.5)
    assert open_source(str(tmp_path / "p.remask")).left_out == {
        ".json files": 1, "excluded by *.gif": 1, "pictures that could not be used when it was packed": 1,
    }  # fmt: skip


def test_masks(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in ("0.png", "0.edited.png", "1.png"):
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / folder / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "images/0.bmp")
    put(tmp_path, "images/notes.txt", "masks/.x.png")
    given = str(tmp_path / "images"), str(tmp_path / "masks")
    source = open_masks(*given, classes=2, exclude=["1.*"])
    assert [Path(source.where(i)).name for i in range(len(source))] == ["0.bmp", "0.edited.png", "0.png"]
    assert source.left_out == {".txt files": 1, "hidden files": 1, "excluded by 1.*": 2}
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "masks/0.bmp")
    with pytest.raises(UserError, match=r"1 pictures of .* have two masks: 0\.bmp and 0\.png; remove one"):
        open_masks(*given, classes=2)


def test_annotations_that_do_not_name_every_picture(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "i").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"i/{name}.png")
    put(tmp_path, "i/readme.md")
    images = [{"id": n, "file_name": f"{name}.png", "height": 8, "width": 8} for n, name in enumerate("ab")]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [0, 0, 4, 4]} for n in range(2)]
    content = {"images": images, "categories": [{"id": 1, "name": "x"}], "annotations": boxes}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    source = open_coco(str(tmp_path / "i"), str(tmp_path / "boxes.json"), exclude=["b.png"])
    assert (len(source), len(source.truth()["annotations"])) == (1, 1)
    assert source.left_out == {
        "pictures that the annotations do not name": 1, ".md files": 1, "excluded by b.png": 1,
    }  # fmt: skip


def test_counts_of_patterns() -> None:
    patterns = Patterns(["a", "b/*"], "")
    assert [patterns.exclude(path) for path in ("a/x", "c/a", "b/y/z", "b", "c")] == [True, True, True, False, False]
    assert dict(patterns.counts) == {"excluded by a": 2, "excluded by b/*": 1}
