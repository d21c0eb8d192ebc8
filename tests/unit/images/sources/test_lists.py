"""lists: paths and classes in text files as people's tools write them."""

import codecs
from pathlib import Path

import pytest

from remask.errors import UserError
from remask.images.sources.files import Files
from remask.images.sources.left_out import notes
from remask.images.sources.lists import Row, read_rows
from remask.images.sources.opening import open_source


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def rows(folder: Path, text: str | bytes, name: str = "list.txt") -> list[tuple[str, str | None]]:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(row.path, row.label) for row in read_rows(str(folder / name), name)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("between", ["\t", " ", ",", ";", " \t ", ", ", "\t "])
def test_lines(tmp_path: Path, encoding: str, end: str, between: str) -> None:
    lines = ["# a comment", "", f"ä b.jpg{between}3  ", "   ", f"./in/c.PNG{between}12\t", f"  /x/d.jpeg{between}0", ""]
    data = end.join(lines).encode(encoding)
    data = codecs.BOM_UTF16_BE + data if encoding == "utf-16-be" else data
    assert rows(tmp_path, data) == [("ä b.jpg", "3"), ("./in/c.PNG", "12"), ("/x/d.jpeg", "0")]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("a b.jpg", ("a b.jpg", None)),
        ("a 7.jpg", ("a 7.jpg", None)),
        ("a.jpg golden retriever", ("a.jpg", "golden retriever")),
        ('a.jpg "golden retriever"', ("a.jpg", "golden retriever")),
        ('"a, b.jpg" 3', ("a, b.jpg", "3")),
        ("'a b.jpg'\tcat", ("a b.jpg", "cat")),
        ('"a ""b"".jpg",3', ('a "b".jpg', "3")),
        ('"x,y.jpg", "cat, big"', ("x,y.jpg", "cat, big")),
        ("3,a.jpg", ("a.jpg", "3")),
        ("cat\tin/a.jpg", ("in/a.jpg", "cat")),
        ("0\t3.000000\tin/a.jpg", ("in/a.jpg", "3")),
        ("a.jpg -1", ("a.jpg", "-1")),
        ("a.jpg 1234567890", ("a.jpg", "1234567890")),
        ("a.svg2 5", ("a.svg2", "5")),
        ("train\\cat\\1.jpg,2", ("train/cat/1.jpg", "2")),
        ("a.jpg copy 2.jpg", ("a.jpg copy 2.jpg", None)),
    ],
)
def test_paths_and_classes(tmp_path: Path, line: str, found: tuple[str, str | None]) -> None:
    assert rows(tmp_path, line) == [found]


def test_what_is_there_decides(tmp_path: Path) -> None:
    put(tmp_path, "IMG 3", "img", "Smith, J.jpg", "v/2007_000032.jpg", "v/7", "back\\slash.jpg", '"q".jpg', "w/a b.png")
    assert rows(tmp_path, "IMG 3") == [("IMG 3", None)]
    assert rows(tmp_path, "img 3\n") == [("img", "3")]
    assert rows(tmp_path, "img tabby") == [("img", "tabby")]
    assert rows(tmp_path, "Smith, J.jpg\n") == [("Smith, J.jpg", None)]
    assert rows(tmp_path, "Smith, J.jpg 4") == [("Smith, J.jpg", "4")]
    assert rows(tmp_path, "v/2007_000032\nv/7") == [("v/2007_000032.jpg", None), ("v/7", None)]
    assert rows(tmp_path, "v/2007_000032 1\nw/a b 0") == [("v/2007_000032.jpg", "1"), ("w/a b.png", "0")]
    assert rows(tmp_path, "back\\slash.jpg") == [("back\\slash.jpg", None)]
    assert rows(tmp_path, '"q".jpg') == [('"q".jpg', None)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("path,label\na.jpg,cat\nb.jpg,dog\n", [("a.jpg", "cat"), ("b.jpg", "dog")]),
        ('Filename;Class\n"a;1.jpg";cat\n', [("a;1.jpg", "cat")]),
        (",image_path,width,label\n0,a.jpg,64,3\n1,b.jpg,32,4\n", [("a.jpg", "3"), ("b.jpg", "4")]),
        ("label\tfile\n2\ta.jpg\n", [("a.jpg", "2")]),
        ("file_name\na.jpg\nb c.jpg\n", [("a.jpg", None), ("b c.jpg", None)]),
        ("﻿path,label\r\n\r\na,1\r\n", [("a", "1")]),
        ("# made by x\npath,other\na.jpg,5\n", [("a.jpg", None)]),
    ],
)
def test_headings(tmp_path: Path, text: str, found: list[tuple[str, str | None]]) -> None:
    assert rows(tmp_path, text, "list.csv") == found


def test_tabs_are_columns_where_the_pictures_are_there(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b c.jpg")
    text = "image\tclass\twidth\na.jpg\tbig cat\t64\nb c.jpg\tdog\t32\n"
    assert rows(tmp_path, text, "list.tsv") == [("a.jpg", "big cat"), ("b c.jpg", "dog")]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"a.jpg\nb\0.jpg\n", "list.txt: line 2 holds a NUL byte"),
        (b"a.jpg 1\n\nb.jpg\n", "list.txt, line 3 gives no class for b.jpg"),
        (b"a.jpg,1\nb.jpg\n", "list.txt, line 2 gives no class for b.jpg"),
        (b"a.jpg\t1\t2\t3\n", "list.txt, line 1 has 4 columns: say which is which in a first line"),
        (b"path,label\na.jpg,1\nb.jpg\n", "list.txt, line 3 has 1 column"),
        (b"a.jpg\nhttps://x.net/b.jpg\n", "list.txt, line 2 is an address"),
        (b"x/a\n", "list.txt, line 1: x/a may be x/a.jpg or x/a.png: write which"),
        (codecs.BOM_UTF16_LE + b"a", "list.txt: line 1 is not UTF-16 text"),
        (b"# nothing\n", "names no images"),
    ],
)
def test_what_cannot_be_read_is_a_line_with_its_number(tmp_path: Path, text: bytes, line: str) -> None:
    put(tmp_path, "x/a.jpg", "x/a.png")
    (tmp_path / "list.txt").write_bytes(text)
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path / "list.txt"))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".lst", ".TXT"])
def test_sources(tmp_path: Path, suffix: str) -> None:
    put(
        tmp_path,
        "in/a b.jpg",
        "c.png",
        "no_extension",
        "caf\udce9.jpg".encode(errors="surrogateescape").decode("latin-1"),
    )
    path = tmp_path / f"x{suffix}"
    path.write_bytes(f"./in/a b.jpg\tdog\n{tmp_path}/c.png\tcat\nno_extension\tdog\n".encode())
    source = open_source(str(path), labelled=True)
    assert [source.read(i) for i in range(3)] == [b"in/a b.jpg", b"c.png", b"no_extension"]
    assert [(source.classes or [])[label] for label in source.labels or []] == ["dog", "cat", "dog"]
    assert open_source(str(path), limit=2).labels == (source.labels or [])[:2]


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg"
    with open(bytes(tmp_path) + b"/" + name, "wb") as file:
        file.write(b"A")
    (tmp_path / "list.txt").write_bytes(name + b" 1\n")
    source = open_source(str(tmp_path / "list.txt"))
    assert isinstance(source, Files)
    assert (source.read(0), source.where(0)) == (b"A", "caf\\xe9.jpg")


def test_rows_know_their_lines(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,split\n\n# no\na.jpg,val\n")
    assert read_rows(str(tmp_path / "l.csv"), "l.csv") == [Row("a.jpg", None, "val", 4)]


@pytest.mark.parametrize("first", ["3", "cat", "0.0"])
def test_a_list_with_the_class_first_names_the_cure(tmp_path: Path, first: str) -> None:
    put(tmp_path, "img/a b.png", "img/c.png")
    (tmp_path / "l.txt").write_text(f"{first} img/a b.png\n{first} img/c.png\n")
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path / "l.txt"))
    assert "line 1: there is no" in str(error.value)
    assert f"the second column names the files; the first must, as in img/a b.png {first}" in str(error.value)


def test_numbers_before_files_that_are_nowhere(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("3 x/a.png\n12 x/c.png\n")
    with pytest.raises(UserError, match="the second column names the files"):
        open_source(str(tmp_path / "l.txt"))
    (tmp_path / "l.txt").write_text("IMG 3.png\nIMG 4.png\n")  # names that hold blanks, of files that are gone
    assert len(open_source(str(tmp_path / "l.txt"))) == 2


@pytest.mark.parametrize("between", [",", "\t", ";"])
def test_a_class_first_in_columns_is_read(tmp_path: Path, between: str) -> None:
    put(tmp_path, "img/1.png")
    assert rows(tmp_path, f"cat{between}img/1.png\n") == [("img/1.png", "cat")]


@pytest.mark.parametrize("blank", ["\u00a0", "\u2003", "\u202f", "\u3000", "\u200b", "\u2009 ", "\x0b"])
def test_blanks_that_part_no_columns_are_named(tmp_path: Path, blank: str) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "l.txt").write_text(f"a.png{blank}1\nb.png{blank}2\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path / "l.txt"))
    assert f"line 1: U+{ord(blank[0]):04X} (" in str(error.value)
    assert "put a tab, a comma or a plain blank between the columns" in str(error.value)
    assert str(error.value).isprintable()


def test_odd_blanks_in_names_and_around_classes(tmp_path: Path) -> None:
    put(tmp_path, "a\u00a0b.png", "c.png\u00a0")
    assert rows(tmp_path, "a\u00a0b.png 1\nc.png\u00a0\n") == [("a\u00a0b.png", "1"), ("c.png\u00a0", None)]
    assert rows(tmp_path, "a\u00a0b.png,\u00a01\u3000\n") == [("a\u00a0b.png", "1")]
    assert rows(tmp_path, "gone\u00a0b.png 1\n") == [("gone\u00a0b.png", "1")], "it may be the name of a lost file"


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "l.csv").write_text(",Image,width,Label,note\n0,a.png,64,cat,x\n")
    assert notes(open_source(str(tmp_path / "l.csv"))) == [
        "columns used: Image, Label; not used: (no name), width, note"
    ]
    (tmp_path / "l.csv").write_text("Image,Label\na.png,cat\n")
    assert notes(open_source(str(tmp_path / "l.csv"))) == []
