"""tar_index: every picture of a tar with its own class, under all its names, and the rest counted."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from remask.errors import UserError
from remask.images.sources.opening import open_source
from remask.images.sources.tar_index import index

Link = tuple[bytes, str]


def tar(path: Path, members: list[tuple[str, bytes | Link]], mode: str = "w", **given: Any) -> str:
    """A tar of files, and of links as (tarfile.SYMTYPE, target)."""
    with tarfile.open(path, mode, **given) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                info.type, info.linkname = data
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return str(path)


def read(spec: str, **given: Any) -> dict[str, tuple[bytes, int | None]]:
    """Content and class of every picture by its name."""
    source = open_source(spec, **given)
    names_of, numbers = source.classes or [], source.labels
    labels = [None] * len(source) if numbers is None else [int(names_of[number]) for number in numbers]
    content = [source.read(i) for i in range(len(source))]
    names = [source.where(i).partition(": ")[2] for i in range(len(source))]
    return dict(zip(names, zip(content, labels, strict=True), strict=True))  # type: ignore[arg-type]


FORMS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "stems", [("s0.left", "s0.right"), ("a.b.c.1", "a.b.c.2"), ("v1.0", "v1.0.1"), ("x/1.5 µm", "x/1.5 mm")]
)
def test_dots_in_names(tmp_path: Path, form: int, stems: tuple[str, str]) -> None:
    members: list[Any] = [(f"{stem}.{end}", end.encode() if end == "png" else str(number).encode())
                          for number, stem in enumerate(stems) for end in ("png", "cls")]  # fmt: skip
    found = read(tar(tmp_path / "x.tar", members, format=form), labelled=True)
    assert found == {f"{stems[0]}.png": (b"png", 0), f"{stems[1]}.png": (b"png", 1)}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path: Path, form: int) -> None:
    stem = f"{'folder/' * 20}{'n' * 200}.x"
    found = read(tar(tmp_path / "x.tar", [(f"{stem}.jpg", b"A"), (f"{stem}.cls", b"1")], format=form))
    assert found == {f"{stem}.jpg": (b"A", 1)}


@pytest.mark.parametrize(
    ("picture", "label"),
    [("a.png", "a.cls"), ("a.edited.png", "a.cls"), ("a.jpg.png", "a.jpg.cls"), ("a.png", "a.png.cls"),
     ("a.png", "a.label.cls"), ("./a.png", "a.cls"), ("d/a.b.png", "./d/a.b.CLS"), ("a.tar.gz.png", "a.tar.gz.cls")],
)  # fmt: skip
def test_which_class_a_picture_takes(tmp_path: Path, picture: str, label: str) -> None:
    ((_, found),) = read(tar(tmp_path / "x.tar", [(label, b" 7\r\n"), (picture, b"A")])).values()
    assert found == 7


def test_classes_of_other_folders_and_names_are_not_taken(tmp_path: Path) -> None:
    members: list[Any] = [("x/a.png", b"A"), ("y/a.cls", b"1"), ("x/b.left.cls", b"2"), ("x/b.right.cls", b"3"),
                          ("x/b.png", b"B"), ("x/c.cls", b"4"), ("x/c.png", b"C")]  # fmt: skip
    source = open_source(tar(tmp_path / "x.tar", members))
    assert (len(source), source.labels) == (3, None)
    assert source.left_out == {".cls files without a picture": 3, "class labels, which not every picture has": 1}


def test_versions_masks_and_formats(tmp_path: Path) -> None:
    members: list[Any] = [("p0.png", b"P"), ("p0.edited.png", b"E"), ("p0.seg.png", b"S"), ("p0.mask.jpg", b"M"),
                          ("q.png", b"Q"), ("q.jpg", b"J"), ("r.seg.png", b"R"),
                          ("s.JPG", b"1"), ("s.jpg", b"2")]  # fmt: skip
    source = open_source(tar(tmp_path / "x.tar", members))
    assert [source.read(i) for i in range(len(source))] == [b"P", b"E", b"J", b"R", b"1", b"2"]
    assert source.left_out == {"masks beside their picture": 2, "pictures that are there in another format too": 1}


def test_links_are_further_names(tmp_path: Path) -> None:
    hard, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    members: list[Any] = [
        ("./d/a0.png", b"A"), ("./d/a0.cls", b"0"), ("./e/b0.png", (hard, "./d/a0.png")), ("./e/b0.cls", b"1"),
        ("c.png", (soft, "d/a0.png")), ("c.cls", (hard, "./e/b0.cls")), ("f/up.png", (soft, "../c.png")),
        ("f/up.cls", b"3"), ("linked", (soft, "d")), ("g.png", (soft, "linked/a0.png")), ("g.cls", b"4"),
        ("gone.png", (soft, "nowhere.png")), ("loop.png", (soft, "loop2.png")), ("loop2.png", (soft, "loop.png")),
        ("early.png", (soft, "late.png")), ("early.cls", b"5"), ("late.png", b"L"), ("late.cls", b"6"),
    ]  # fmt: skip
    spec = tar(tmp_path / "x.tar", members)
    assert read(spec) == {
        "d/a0.png": (b"A", 0), "e/b0.png": (b"A", 1), "c.png": (b"A", 1), "f/up.png": (b"A", 3), "g.png": (b"A", 4),
        "early.png": (b"L", 5), "late.png": (b"L", 6),
    }  # fmt: skip
    assert open_source(spec).left_out == {"links to nothing": 4}


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    members: list[Any] = [("a.jpg", b"A"), ("a.json", b"{}"), ("b.txt", b"x"), ("c.tar.gz", b"z"), ("README", b"r"),
                          ("._a.jpg", b"h"), (".git/x.jpg", b"h"), ("__MACOSX/a.jpg", b"h"),
                          ("pipe", (tarfile.FIFOTYPE, "")),
                          ("a.jpg", b"again"), ("alone.cls", b"1")]  # fmt: skip
    found = index(tar(tmp_path / "x.tar", members))
    assert [member.name for member, _ in found.images] == ["a.jpg"]
    assert dict(found.left_out) == {
        ".json files": 1, ".txt files": 1, ".gz files": 1, "files without extension": 1, "hidden files": 3,
        "special files, such as pipes": 1, "members that a later one of the name replaces": 1,
        ".cls files without a picture": 1,
    }  # fmt: skip
    assert open_source(str(tmp_path / "x.tar")).read(0) == b"again"


def test_tars_that_are_joined(tmp_path: Path) -> None:
    parts = [Path(tar(tmp_path / f"{i}.tar", [(f"{i}.jpg", str(i).encode())])).read_bytes() for i in range(3)]
    (tmp_path / "all").mkdir()
    (tmp_path / "all/x.tar").write_bytes(b"".join(parts))
    assert list(read(str(tmp_path / "all/x.tar"))) == ["0.jpg", "1.jpg", "2.jpg"]
    (tmp_path / "all/x.tar").write_bytes(parts[0] + b"no tar at all" * 100)
    with pytest.raises(UserError, match="cannot be read as an uncompressed tar"):
        open_source(str(tmp_path / "all/x.tar"))


def test_a_damaged_header_in_the_middle_is_no_end(tmp_path: Path) -> None:
    path = Path(tar(tmp_path / "x.tar", [(f"{i}.jpg", b"A") for i in range(4)]))
    data = bytearray(path.read_bytes())
    data[2 * 1024 : 2 * 1024 + 200] = b"x" * 200
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.tar cannot be read as an uncompressed tar: .*2,048"):
        open_source(str(path))


def test_a_limit_leaves_the_classes_that_come_later(tmp_path: Path) -> None:
    members: list[Any] = [(f"{i}.jpg", b"A") for i in range(4)] + [(f"{i}.cls", str(i).encode()) for i in range(4)]
    assert open_source(tar(tmp_path / "x.tar", members), limit=2).labels == [0, 1]


@pytest.mark.parametrize("text", [b"\xef\xbb\xbf3\r\n", "3\n".encode("utf-16"), b"3\r", b"\n3"])
def test_class_numbers_as_tools_write_them(tmp_path: Path, text: bytes) -> None:
    source = open_source(tar(tmp_path / "x.tar", [("a.jpg", b"A"), ("a.cls", text)]))
    assert (source.labels, source.classes) == ([0], ["3"])


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = "caf\udce9.jpg"
    source = open_source(tar(tmp_path / "x.tar", [(name, b"A")], format=tarfile.GNU_FORMAT, errors="surrogateescape"))
    assert source.where(0) == "x.tar: caf\\xe9.jpg"
    assert source.read(0) == b"A"
