"""Pictures packed in few large files: tar shards in the WebDataset layout, parquet in the Hugging Face layout."""

import bisect
import itertools
import json
import os
import tarfile
from collections import OrderedDict
from typing import Any, NamedTuple

from remask.images.files import EXTENSIONS, is_picture, one_split, printable
from remask.types import UserError

HELD_BYTES = 1 << 30
"""Parquet up to this size (its images unpacked) is read into memory once; above it, row groups are read as needed."""

HELD_GROUPS = 4
"""Row groups kept of a larger set. An access in random order reads whole groups: tar shards suit such sets better."""


class _Member(NamedTuple):
    shard: int
    name: str
    offset: int
    size: int


class Tar:
    """Members of uncompressed tars, indexed once and then read by offset: any order, nothing shared, nothing held open.

    Members of one key (the path up to the first dot of its name) are one sample: its picture, and its class in .cls.
    """

    def __init__(self, name: str, shards: list[str], limit: int | None) -> None:
        one_split(name, shards)
        self.name, self._shards = name, [os.path.abspath(shard) for shard in shards]
        self._members: list[_Member] = []
        self.classes: list[str] | None = None
        labels: list[int | None] = []
        for number, shard in enumerate(shards):
            left = None if limit is None else limit - len(self._members)
            if left == 0:
                break
            for member, label in _index(number, shard, left):
                self._members.append(member)
                labels.append(label)
        if not self._members:
            raise UserError(f"{printable(name)} holds no images: looked for {' '.join(EXTENSIONS)} in the tar")
        known = [label for label in labels if label is not None]
        self.labels = known if len(known) == len(labels) else None

    def __len__(self) -> int:
        return len(self._members)

    def read(self, i: int) -> bytes:
        member = self._members[i]
        with open(self._shards[member.shard], "rb") as file:
            file.seek(member.offset)
            return file.read(member.size)

    def where(self, i: int) -> str:
        member = self._members[i]
        return printable(f"{os.path.basename(self._shards[member.shard])}: {member.name}")

    def entries(self) -> tuple[list[str], list[int], dict[str, Any]]:
        """Names, sizes in bytes and facts of what is used, without reading it; see `images.fingerprint`."""
        several, members = len(self._shards) > 1, self._members
        shards = [os.path.basename(shard) + ": " if several else "" for shard in self._shards]
        return [shards[m.shard] + m.name for m in members], [m.size for m in members], {}


def _index(number: int, shard: str, limit: int | None) -> list[tuple[_Member, int | None]]:
    """The samples of one shard in its own order, with their class where a .cls says it."""
    pictures: dict[str, list[_Member]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all headers in memory
                base = os.path.basename(info.name)
                if not info.isreg() or info.issparse() or base.startswith("."):
                    continue
                key = info.name[: len(info.name) - len(base)] + base.split(".")[0]
                if is_picture(base):
                    if len(pictures) == limit and key not in pictures:
                        break
                    pictures.setdefault(key, []).append(_Member(number, info.name, info.offset_data, info.size))
                elif base.lower().endswith(".cls"):
                    labels[key] = _class_number(tar, info, shard)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{printable(shard)} cannot be read as an uncompressed tar: {error}") from None
    if any(m.offset + m.size > os.path.getsize(shard) for members in pictures.values() for m in members[-1:]):
        raise UserError(f"{printable(shard)} is cut short: copy it again")
    chosen = [(member, labels.get(key)) for key, members in pictures.items() for member in _picture(members)]
    return chosen[:limit]


def _class_number(tar: tarfile.TarFile, info: tarfile.TarInfo, shard: str) -> int:
    stream = tar.extractfile(info)
    text = stream.read(64).strip() if stream is not None else b""
    if not text.isdigit():
        raise UserError(f"{printable(shard)}: {printable(info.name)} holds no class number but {text[:20]!r}")
    return int(text)


def _picture(members: list[_Member]) -> list[_Member]:
    """Of one key's pictures the one named key.extension (x.jpg, not x.mask.png); files with other dots stand alone."""
    plain = [member for member in members if os.path.basename(member.name).count(".") == 1]
    return sorted(plain, key=lambda m: EXTENSIONS.index(os.path.splitext(m.name)[1].lower()))[:1] or members


class _Group(NamedTuple):
    file: int
    group: int
    row: int
    """Its first row within the file."""
    rows: int


class Parquet:
    """Rows of parquet files with a column of pictures: a struct of bytes and path, or plain bytes.

    Small sets are read at once, so that forked workers share them; each process reads what it needs of larger ones.
    """

    def __init__(self, name: str, files: list[str], limit: int | None) -> None:
        one_split(name, files)
        self.name, self._files = name, [os.path.abspath(file) for file in files]
        schema = _parquet(self._files[0], name).schema_arrow
        self._column, label, self.classes = _columns(schema, name)
        self._label = label
        self._groups: list[_Group] = []
        total, size = 0, 0
        labels: list[Any] = []
        for number, path in enumerate(self._files):
            file, row = _parquet(path, name), 0
            if not {self._column, label or self._column} <= set(file.schema_arrow.names):
                raise UserError(f"{printable(path)} lacks the column {self._column} or {label} that the others have")
            for group in range(file.num_row_groups):
                if limit is not None and total >= limit:
                    break
                meta = file.metadata.row_group(group)
                self._groups.append(_Group(number, group, row, meta.num_rows))
                row, total = row + meta.num_rows, total + meta.num_rows
                size += meta.total_byte_size
                if label is not None:
                    labels += file.read_row_group(group, [label], use_threads=False)[label].to_pylist()
        self._length = total if limit is None else min(total, limit)
        if not self._length:
            raise UserError(f"{printable(name)} holds no rows")
        known = labels[: self._length]
        self.labels = known if known and all(value is not None and value >= 0 for value in known) else None
        self._starts = [0, *itertools.accumulate(group.rows for group in self._groups)]
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._held = len(self._groups) if size <= HELD_BYTES else HELD_GROUPS
        if size <= HELD_BYTES:
            for number in range(len(self._groups)):
                self._load(number)

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def read(self, i: int) -> bytes:
        number = bisect.bisect_right(self._starts, i) - 1
        if number not in self._cache:
            self._load(number)
        value = self._cache[number][i - self._starts[number]].as_py()
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                with open(
                    os.path.join(os.path.dirname(self._files[self._groups[number].file]), value["path"]), "rb"
                ) as f:
                    return f.read()
            value = value.get("bytes")
        return value or b""

    def where(self, i: int) -> str:
        number = bisect.bisect_right(self._starts, i) - 1
        group = self._groups[number]
        return printable(f"{os.path.basename(self._files[group.file])}: row {group.row + i - self._starts[number]}")

    def entries(self) -> tuple[list[str], list[int], dict[str, Any]]:
        """Names and sizes in bytes of the files that are used, their rows and the columns; see `images.fingerprint`."""
        rows = dict[str, int]()
        for group in self._groups:
            rows[self._files[group.file]] = rows.get(self._files[group.file], 0) + group.rows
        facts = {"columns": [self._column, self._label], "rows": [*rows.values()]}
        return [os.path.basename(file) for file in rows], [os.path.getsize(file) for file in rows], facts

    def _load(self, number: int) -> None:
        group = self._groups[number]
        table = _parquet(self._files[group.file], self.name).read_row_group(
            group.group, [self._column], use_threads=False
        )
        self._cache[number] = table[self._column]
        while len(self._cache) > self._held:
            self._cache.popitem(last=False)


def _parquet(path: str, name: str) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{printable(name)} is parquet, which needs pyarrow: pip install 'remask[data]'") from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{printable(path)} cannot be read as parquet: {' '.join(str(error).split())}") from None


def _columns(schema: Any, name: str) -> tuple[str, str | None, list[str] | None]:
    """Names of the picture column and the label column, and the class names, from the metadata or else the types."""
    from pyarrow import types

    stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = stored.get("info", {}).get("features", {})
    kinds = {key: value.get("_type") for key, value in features.items() if isinstance(value, dict)}
    pictures = [field.name for field in schema if kinds.get(field.name) == "Image" or _holds_bytes(field.type)]
    if not pictures:
        raise UserError(f"{printable(name)} has no column of images among {', '.join(schema.names)}")
    pictures.sort(key=lambda column: (kinds.get(column) != "Image", column not in ("image", "img", "jpg", "png")))
    labels = [column for column in schema.names if kinds.get(column) == "ClassLabel"]
    usual = [column for column in ("label", "labels", "fine_label", "class", "target", "cls") if column in schema.names]
    labels += [column for column in usual if types.is_integer(schema.field(column).type)]
    if not labels:
        return pictures[0], None, None
    names = features.get(labels[0], {}).get("names")
    return pictures[0], labels[0], [str(value) for value in names] if isinstance(names, list) else None


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)
