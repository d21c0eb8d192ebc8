"""archives: tar shards and parquet, in any order and from any process."""

import io
import json
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from remask.errors import UserError
from remask.images.sources.archives import CACHED_GROUPS
from remask.images.sources.left_out import notes
from remask.images.sources.opening import open_source


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_webdataset_shards(tmp_path: Path) -> None:
    tar(tmp_path / "x-000.tar", {"a.jpg": b"A", "a.cls": b"2\n", "a.json": b"{}", "b.PNG": b"BB", "b.cls": b"0"})
    tar(tmp_path / "x-001.tar", {"sub/c.d.jpg": b"C", "sub/c.cls": b"5", ".hidden.jpg": b"no"})
    for spec in (str(tmp_path), f"{tmp_path}/x-{{000..001}}.tar", f"{tmp_path}/x-*.tar", f"{tmp_path}/x-00{{0,1}}.tar"):
        source = open_source(spec)
        assert [source.read(i) for i in (2, 0, 1)] == [b"C", b"A", b"BB"]
        assert source.labels == [1, 0, 2]
        assert source.classes == ["0", "2", "5"]
    assert source.where(2) == "x-001.tar: sub/c.d.jpg"
    again = pickle.loads(pickle.dumps(source))
    assert again.read(1) == b"BB"
    assert open_source(str(tmp_path), limit=1).classes == ["2"]
    assert len(open_source(str(tmp_path), limit=3)) == 3


def test_of_a_sample_the_picture_named_key_dot_extension(tmp_path: Path) -> None:
    members = {"a.seg.png": b"mask", "a.jpg": b"A", "a.png": b"other", "b.v1.jpg": b"B1", "b.v2.jpg": b"B2"}
    source = open_source(str(tar(tmp_path / "x.tar", members)))
    assert [source.read(i) for i in range(len(source))] == [b"A", b"B1", b"B2"]
    assert source.labels is None


def test_labels_only_if_every_sample_has_one(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a.jpg": b"A", "a.cls": b"1", "b.jpg": b"B"})
    assert open_source(str(path)).labels is None
    with pytest.raises(UserError, match=r"has no labels.*\.cls"):
        open_source(str(path), labelled=True)


def test_imagenet_shards(shared: Path) -> None:
    source = open_source(str(shared / "data/imagenet1000"), labelled=True)
    assert source.labels is not None
    assert sorted(source.labels) == list(range(1000))
    assert source.read(999)[:2] == b"\xff\xd8"
    assert source.where(0) == "imagenet1000-000000.tar: n01440764_0000.jpg"


def test_tar_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images"):
        open_source(str(tar(tmp_path / "text.tar", {"a.txt": b"x"})))
    with pytest.raises(UserError, match="uncompressed tar"):
        open_source(str(tar(tmp_path / "zipped.tar", {"a.jpg": b"x"}, "w:gz")))
    with pytest.raises(UserError, match="must be unpacked"):
        open_source(str(tar(tmp_path / "zipped.tar.gz", {"a.jpg": b"x"}, "w:gz")))
    with pytest.raises(UserError, match=r"a\.cls holds no class number but b'cat'"):
        open_source(str(tar(tmp_path / "word.tar", {"a.jpg": b"x", "a.cls": b"cat"})))
    whole = tar(tmp_path / "whole.tar", {"a.jpg": b"x" * 5000}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:3000])
    with pytest.raises(UserError, match="cut"):
        open_source(str(tmp_path / "cut.tar"))
    tar(tmp_path / "x-0.tar", {"a.jpg": b"x"})
    with pytest.raises(UserError, match=r"there is no .*x-1\.tar"):
        open_source(f"{tmp_path}/x-{{0..1}}.tar")


def parquet(path: Path, rows: int, *, names: bool = True, group: int = 4, struct: bool = True, label: int = 0) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    data = [f"{path.stem}{i}".encode() for i in range(rows)]
    pictures = pa.array([{"bytes": d, "path": None} for d in data]) if struct else pa.array(data)
    table = pa.table({"picture": pictures, "label": pa.array([label + i % 2 for i in range(rows)])})
    if names:
        features = {"picture": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)
    return path


def test_parquet_folder(tmp_path: Path) -> None:
    for stem in ("train-0", "train-1"):
        parquet(tmp_path / f"{stem}.parquet", 10)
    source = open_source(str(tmp_path), labelled=True)
    assert len(source) == 20
    assert [source.read(i) for i in (19, 0, 10, 7)] == [b"train-19", b"train-00", b"train-10", b"train-07"]
    assert source.labels == [0, 1] * 10
    assert source.classes == ["cat", "dog"]
    assert source.where(13) == "train-1.parquet: row 3"
    assert pickle.loads(pickle.dumps(source)).read(13) == b"train-13"
    short = open_source(str(tmp_path), limit=5)
    assert len(short) == 5
    assert short.labels == [0, 1, 0, 1, 0]
    assert len(open_source(f"{tmp_path}/*-1.parquet")) == 10


def test_parquet_beyond_memory_reads_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remask.images.sources.archives.CACHED_BYTES", 0)
    source = open_source(str(parquet(tmp_path / "x.parquet", 60)))
    order = [(7 * i) % 60 for i in range(60)]
    assert [source.read(i) for i in order] == [f"x{i}".encode() for i in order]
    assert len(source._cache) == CACHED_GROUPS  # type: ignore[attr-defined]


def test_parquet_without_metadata(tmp_path: Path) -> None:
    source = open_source(str(parquet(tmp_path / "x.parquet", 3, names=False, struct=False)))
    assert [source.read(i) for i in range(3)] == [b"x0", b"x1", b"x2"]
    assert source.labels == [0, 1, 0]
    assert source.classes == ["0", "1"]
    withheld = open_source(str(parquet(tmp_path / "y.parquet", 3, label=-1)))
    assert withheld.labels is None


def test_parquet_of_paths(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"A")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": "in/a.jpg"}, {"bytes": b"B", "path": "gone.jpg"}, None]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert [source.read(i) for i in range(3)] == [b"A", b"B", b""]
    assert source.labels is None


def test_parquet_mistakes(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="no column of images among x"):
        open_source(str(tmp_path / "x.parquet"))
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        open_source(str(tmp_path / "text.parquet"))
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        parquet(tmp_path / "set" / f"{split}.parquet", 2)
    with pytest.raises(UserError, match=r"several splits \(test, train\)"):
        open_source(str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([[[1, None], [3, 2]]], "its numbers make no array HW, HWC or CHW"),
        ([[[1, 2], [3]]], "its numbers make no array HW, HWC or CHW"),
        ([{"bytes": None, "path": "a\0.png"}], r"a path with a NUL byte: a\x00.png"),
    ],
)
def test_a_damaged_row_of_parquet_is_a_bad_picture(tmp_path: Path, values: list[Any], line: str) -> None:
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(arrow.table({"image": values}), tmp_path / "a.parquet")
    with pytest.raises(OSError, match=re.escape(line)):
        open_source(str(tmp_path / "a.parquet")).read(0)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'remask\[data\]'"):
        open_source(str(tmp_path / "x.parquet"))


def test_cifar(shared: Path) -> None:
    pytest.importorskip("pyarrow")
    source = open_source(str(shared / "data/cifar10/test.parquet"), limit=1234, labelled=True)
    assert len(source) == len(source.labels or []) == 1234
    assert source.classes is not None
    assert source.classes[:2] == ["airplane", "automobile"]
    assert source.read(1233)[:2] == b"\xff\xd8"


def labelled(path: Path, values: Any, names: tuple[str, ...] | None = None, column: str = "label") -> Path:
    """A parquet file with these labels, and the names of the numbers in its metadata where given."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": pa.array([b"x"] * len(values), pa.binary()), column: pa.array(values)})
    if names is not None:
        features = {"image": {"_type": "Image"}, column: {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def named(path: Path) -> list[str]:
    source = open_source(str(path), labelled=True)
    assert source.labels is not None
    assert source.classes is not None
    assert set(source.labels) <= set(range(len(source.classes)))
    return [source.classes[label] for label in source.labels]


def test_parquet_files_of_one_source_are_joined_by_name(tmp_path: Path) -> None:
    labelled(tmp_path / "a.parquet", [0, 1, 2], ("ant", "bee", "cow"))
    labelled(tmp_path / "b.parquet", [0, 1, 2, 3], ("dog", "cow", "ant", "bee"))
    labelled(tmp_path / "c.parquet", ["bee", "emu"])
    assert named(tmp_path) == ["ant", "bee", "cow", "dog", "cow", "ant", "bee", "bee", "emu"]
    source = open_source(str(tmp_path), limit=5)
    assert source.classes == ["ant", "bee", "cow", "dog"]
    assert source.labels == [0, 1, 2, 3, 2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1234567890, -3, 7, 1234567890], ["1234567890", "-3", "7", "1234567890"]),
        (["n01440764", "n01443537"], ["n01440764", "n01443537"]),
        ([1.0, 3.0], ["1", "3"]),
        ([True, False], ["True", "False"]),
    ],
    ids=["ids", "text", "whole numbers as floats", "truth"],
)
def test_labels_without_names_are_names(tmp_path: Path, values: list[Any], expected: list[str]) -> None:
    assert named(labelled(tmp_path / "x.parquet", values)) == expected


def test_labels_of_a_dictionary(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    assert named(labelled(tmp_path / "x.parquet", pa.array(["b", "a", "b"]).dictionary_encode())) == ["b", "a", "b"]


WITHOUT = "1 of 2 images have no label (missing, -1 or NaN)"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([0, None], WITHOUT), ([float("nan"), 1.0], WITHOUT), ([-1, 3], WITHOUT), ([-1.0, 3.0], WITHOUT),
        (["", "cat"], WITHOUT), (["nan", "cat"], WITHOUT), (["-1", "3"], WITHOUT),
        ([-1, -1], "2 of 2 images have no label"), ([0.5, 2.0], "measures such as 0.5, and no classes"),
    ],
)  # fmt: skip
def test_columns_that_are_no_classes(tmp_path: Path, values: list[Any], why: str) -> None:
    source = open_source(str(labelled(tmp_path / "x.parquet", values)))
    assert source.labels is None
    assert [why in line for line in notes(source)].count(True) == 1
    assert ("class labels, which not every picture has" in source.left_out) == (why == WITHOUT)
    with pytest.raises(UserError, match="has no labels to use") as caught:
        open_source(str(tmp_path / "x.parquet"), labelled=True)
    assert why in str(caught.value)


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [b"A"], "caption": ["x"], "label": [3], "id": [7]}), tmp_path / "x.parquet")
    assert notes(open_source(str(tmp_path / "x.parquet"))) == ["columns used: image, label; not used: caption, id"]


def test_two_spellings_of_one_number_are_not_taken_for_classes(tmp_path: Path) -> None:
    path = labelled(tmp_path / "x.parquet", ["01", "1"])
    assert open_source(str(path)).classes == ["01", "1"]
    with pytest.raises(UserError, match="has the classes '01' and '1', which are one number"):
        open_source(str(path), labelled=True)


def test_label_mistakes(tmp_path: Path) -> None:
    for name, values, names, words in (
        ("twice", [0, 1], ("a", "a"), "twice.parquet has two classes of the name 'a'"),
        ("beyond", [0, 7], ("a", "b"), "a row of class number 7 and names 2 classes"),
    ):
        with pytest.raises(UserError, match=words):
            open_source(str(labelled(tmp_path / f"{name}.parquet", values, names)))
    (tmp_path / "mixed").mkdir()
    labelled(tmp_path / "mixed/a.parquet", [0, 1], ("a", "b"))
    labelled(tmp_path / "mixed/b.parquet", [0, 1])
    with pytest.raises(UserError, match=r"b\.parquet numbers its classes without names, and a\.parquet names them"):
        open_source(str(tmp_path / "mixed"))


def cls_members(*texts: bytes) -> dict[str, bytes]:
    return {name: data for i, text in enumerate(texts) for name, data in ((f"{i}.png", b"x"), (f"{i}.cls", text))}


def test_ids_in_cls_members(tmp_path: Path) -> None:
    members = cls_members(b"1234567890", b"-3", b"12345678901234567890", b"7.0\n")
    assert named(tar(tmp_path / "x.tar", members)) == ["1234567890", "-3", "12345678901234567890", "7"]


def test_one_number_written_in_two_ways_in_cls_members(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", cls_members(b"1234567890", b"0001234567890\n"))
    assert len(notes(open_source(str(path)))) == 1
    with pytest.raises(UserError, match="'0001234567890' and '1234567890', which are one number"):
        open_source(str(path), labelled=True)


@pytest.mark.parametrize("text", [b"-1", b"nan", b"-1.0"])
def test_withheld_labels_in_cls_members(tmp_path: Path, text: bytes) -> None:
    path = tar(tmp_path / "x.tar", cls_members(b"0", text))
    source = open_source(str(path))
    assert (source.labels, source.left_out) == (None, {"class labels, which not every picture has": 1})
    assert WITHOUT in notes(source)[-1]
