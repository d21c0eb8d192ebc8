"""Sources whose files claim, unfold or lead to more than they hold."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remask.errors import UserError
from remask.images.sources.fingerprint import inventory
from remask.images.sources.opening import open_source
from tests.fuzz.mutate import packed as right_checksums
from tests.fuzz.seeds import packs


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def test_pages_of_zeros_are_refused_before_they_unfold(tmp_path: Path) -> None:
    spec = parquet(tmp_path / "x.parquet", {"image": [bytes(100 << 20)] * 4}, compression="zstd", use_dictionary=False)
    assert (tmp_path / "x.parquet").stat().st_size < 200_000
    source = open_source(spec)
    with pytest.raises(OSError, match="it would unfold to 419,4"):
        source.read(0)


def test_one_value_in_thousands_of_rows_is_refused_and_a_limit_reads_what_it_needs(tmp_path: Path) -> None:
    value = np.random.default_rng(0).bytes(900_000)
    pa = pytest.importorskip("pyarrow")
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), pa.array([value]))
    spec = parquet(tmp_path / "x.parquet", {"image": column}, row_group_size=4000, store_schema=False)
    assert (tmp_path / "x.parquet").stat().st_size < 2_000_000
    with pytest.raises(OSError, match="it would unfold to"):
        open_source(spec).read(0)
    few = open_source(spec, limit=4)
    assert [few.read(i) for i in range(4)] == [value] * 4


def test_a_damaged_page_makes_bad_pictures_of_its_rows_alone(tmp_path: Path) -> None:
    values = [np.random.default_rng(i).bytes(5000) for i in range(4)]
    spec = parquet(
        tmp_path / "x.parquet", {"image": values}, row_group_size=2, compression="gzip", use_dictionary=False
    )
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    data[100:4000] = bytes(3900)
    (tmp_path / "x.parquet").write_bytes(data)
    source = open_source(spec)
    for i in (0, 1):
        with pytest.raises(OSError, match="damaged in the parquet file"):
            source.read(i)
    assert [source.read(2), source.read(3)] == values[2:]


def test_sizes_below_zero_do_not_lead_a_tar_in_a_circle(tmp_path: Path) -> None:
    """CVE-2025-8194 of CPython, in its own and in older versions."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 5, {"size": "-1536"}
            tar.addfile(info, io.BytesIO(b"12345"))
    (tmp_path / "x.tar").write_bytes(stream.getvalue())
    with pytest.raises(UserError, match="cannot be read as an uncompressed tar: a size below 0"):
        open_source(str(tmp_path / "x.tar"))


@pytest.mark.parametrize("name", ["a/" * 3000 + "x.png", "x.png"])
def test_extended_headers_of_a_tar_are_bounded(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.pax_headers = {"comment": "c" * (2 << 20)} if name == "x.png" else {}
        tar.addfile(info)
    with pytest.raises(UserError, match=r"a name of more than 4,096 bytes|an extended header of 2,"):
        open_source(str(tmp_path / "x.tar"))


CHANGES: list[dict[str, Any]] = [
    {"columns": None}, {"columns": {}}, {"classes": 3}, {"classes": ["one"]}, {"source_left_out": [1]},
    {"columns": {"start": ["<u8", [10**12]]}}, {"columns": {"start": ["|O", [2]]}}, {"left_out": 0},
]  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES)
def test_tables_of_packed_sets_with_right_checksums_are_tested_all_the_same(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    data = packs(tmp_path / "pack")[0]
    start = int.from_bytes(data[16:24], "little")
    length = int.from_bytes(data[start : start + 8], "little")
    about = json.loads(data[start + 8 : start + 8 + length])
    columns = changes.get("columns")
    changed = {**about, **changes, **({"columns": {**about["columns"], **columns}} if columns else {})}
    text = json.dumps(changed).encode()
    text += b" " * (-len(text) % 8)
    table = len(text).to_bytes(8, "little") + text + data[start + 8 + length :]
    (tmp_path / "x.remask").write_bytes(right_checksums(data[:start] + table))
    with pytest.raises(UserError, match="holds a table that no remask wrote"):
        open_source(str(tmp_path / "x.remask"))


def test_a_list_of_absolute_and_relative_paths_has_an_inventory(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text(f"{tmp_path}/a.png\nb.png\n../c.png\n")
    assert inventory(open_source(str(tmp_path / "l.txt"))).names == [f"{tmp_path}/a.png", "b.png", "../c.png"]
