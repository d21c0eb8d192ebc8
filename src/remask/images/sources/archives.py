"""Images packed in few large files: tar shards in the WebDataset layout, parquet in the Hugging Face layout."""

import bisect
import errno
import itertools
import os
from collections import Counter, OrderedDict
from typing import Any, NamedTuple

import numpy as np

from remask.errors import MachineError, UserError
from remask.files.bounds import MOST_ENCODED, open_regular, read_file, too_long
from remask.images.deep import Unread, laid_out
from remask.images.sources.columns import Columns, LabelColumn, is_label, joined, label_column, why_none
from remask.images.sources.files import EXTENSIONS, one_split, printable, splits_of
from remask.images.sources.labels import TextLabels, of_texts, says_none
from remask.images.sources.left_out import NO_LABEL, Patterns, further, listed
from remask.images.sources.parquet_rows import features_of, open_parquet, read_rows, values_of
from remask.images.sources.tar_index import Member, index

CACHED_BYTES = 1 << 30
"""Parquet up to this size (its images unpacked) is read into memory once; above it, row groups are read as needed."""

CACHED_GROUPS = 4
"""Row groups kept of a larger set. An access in random order reads whole groups: tar shards suit such sets better."""


class Tar:
    """Members of uncompressed tars, indexed once and then read by offset: in any order, by any process.

    Which member is an image, and which class it has: see `tar_index`.
    """

    def __init__(self, name: str, shards: list[str], limit: int | None, patterns: Patterns | None = None) -> None:
        one_split(name, shards)
        self.name, self._shards = name, [os.path.abspath(shard) for shard in shards]
        self._members: list[tuple[int, Member]] = []
        left_out, labels = Counter[str](), list[str | None]()
        for number, shard in enumerate(shards):
            remaining = None if limit is None else limit - len(self._members)
            if remaining == 0:
                break
            listing = index(shard, patterns)
            left_out += listing.left_out
            for member, label in listing.images[:remaining]:
                self._members.append((number, member))
                labels.append(label)
        if not self._members:
            other = f"; left out are {skipped}" if (skipped := listed(left_out)) else ""
            raise UserError(f"{printable(name)} holds no images: looked for {' '.join(EXTENSIONS)} in the tar{other}")
        parsed = of_texts([label or "" for label in labels]) if any(labels) else TextLabels()
        self.labels, self.classes, self.unlabelled = parsed
        labelled = sum(not says_none(label or "") for label in labels)
        self.left_out: dict[str, int] = {**left_out, **({NO_LABEL: labelled} if labelled and not self.labels else {})}
        self.splits = splits_of([member.name for _, member in self._members])

    def __len__(self) -> int:
        return len(self._members)

    def read(self, i: int) -> bytes:
        shard, member = self._members[i]
        if member.size > MOST_ENCODED:
            raise OSError(errno.EFBIG, too_long(member.size, MOST_ENCODED))
        with open_regular(self._shards[shard]) as file:
            file.seek(member.offset)
            data = file.read(member.size)
        if len(data) < member.size:
            raise OSError(errno.EIO, "cut short: the tar ends within it")
        return data

    def where(self, i: int) -> str:
        shard, member = self._members[i]
        return printable(f"{os.path.basename(self._shards[shard])}: {member.name}")

    def entries(self) -> tuple[list[str], list[int], dict[str, Any]]:
        """Names and sizes in bytes of the images, which are not read, and no facts; see `fingerprint`."""
        several = len(self._shards) > 1
        shards = [os.path.basename(shard) + ": " if several else "" for shard in self._shards]
        names = [shards[shard] + member.name for shard, member in self._members]
        return names, [member.size for _, member in self._members], {}


class _Group(NamedTuple):
    file: int
    group: int
    row: int
    """Its first row within the file."""
    rows: int
    used: int
    """Its first rows that are read, all unless there is a limit."""


class Parquet:
    """Rows of parquet files with a column of images: a struct of bytes and path, plain bytes, or arrays of numbers.

    Small sets are read at once, so that forked workers share them; of larger ones each process reads the row groups
    that it needs.
    """

    def __init__(self, name: str, files: list[str], limit: int | None) -> None:
        one_split(name, files)
        self.name, self._files = name, [os.path.abspath(file) for file in files]
        schema = open_parquet(self._files[0], name).schema_arrow
        (self._column, *others), label = _columns(schema, name)
        self._label = label
        self._kind: Any = None
        self._shape: tuple[int, ...] | None = None
        self._kind, self._shape = _array_of(schema.field(self._column).type) or (None, None)
        self._groups: list[_Group] = []
        total, size = 0, 0
        label_columns: list[LabelColumn] = []
        for number, path in enumerate(self._files):
            file, row, values = open_parquet(path, name), 0, list[Any]()
            if not {self._column, label or self._column} <= set(file.schema_arrow.names):
                raise UserError(f"{printable(path)} lacks the column {self._column} or {label} that the others have")
            for group in range(file.num_row_groups):
                if limit is not None and total >= limit:
                    break
                meta = file.metadata.row_group(group)
                used = meta.num_rows if limit is None else min(meta.num_rows, limit - total)
                self._groups.append(_Group(number, group, row, meta.num_rows, used))
                row, total, size = row + meta.num_rows, total + used, size + meta.total_byte_size
                if label is not None:
                    values += values_of(file, path, group, label, used)
            if label is not None and values:
                names = _names(file.schema_arrow, label)
                label_columns.append(LabelColumn(values, names, os.path.basename(path)))
        self._length = total
        if not self._length:
            raise UserError(f"{printable(name)} holds no rows")
        self.labels, self.classes = joined(label_columns)
        self.left_out = further(others, self._length)
        self.unlabelled = why_none(label_columns)
        values = [value for folder in label_columns for value in folder.values]
        if self.labels is None and 0 < (unused := sum(map(is_label, values))) < len(values):
            self.left_out[NO_LABEL] = unused
        used = [self._column, *([label] if label else [])]
        self.remarks = Columns(used, [name for name in schema.names if name not in (*used, *others)]).remarks()
        self._starts = [0, *itertools.accumulate(group.used for group in self._groups)]
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._cached = len(self._groups) if size <= CACHED_BYTES else CACHED_GROUPS
        self._cache_all(size)

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def _cache_all(self, size: int) -> None:
        """Read a set of `size` bytes, as its files state them, if it is small and is what they state."""
        read = 0
        for number in range(len(self._groups) if size <= CACHED_BYTES else 0):
            read += sum(batch.get_total_buffer_size() for batch in self._load(number).batches)
            if read > 2 * CACHED_BYTES:
                self._cached = CACHED_GROUPS
                return

    def read(self, i: int) -> bytes | np.ndarray:
        number = bisect.bisect_right(self._starts, i) - 1
        rows = self._cache[number] if number in self._cache else self._load(number)
        value = rows[i - self._starts[number]]
        if isinstance(value, list):
            return self._array(value)
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                return self._beside(self._groups[number].file, value["path"])
            value = value.get("bytes")
        return value or b""

    def _array(self, value: list[Any]) -> np.ndarray:
        try:
            return laid_out(np.asarray(value, self._kind).reshape(self._shape or np.shape(value)), 0).values
        except (ValueError, TypeError, Unread):  # null among them, or rows of several lengths
            raise OSError("its numbers make no array HW, HWC or CHW") from None

    def _beside(self, file: int, path: str) -> bytes:
        if "\0" in path:
            raise OSError(errno.EINVAL, f"a path with a NUL byte: {printable(path)}")
        return read_file(os.path.join(os.path.dirname(self._files[file]), path))

    def where(self, i: int) -> str:
        number = bisect.bisect_right(self._starts, i) - 1
        group = self._groups[number]
        return printable(f"{os.path.basename(self._files[group.file])}: row {group.row + i - self._starts[number]}")

    def entries(self) -> tuple[list[str], list[int], dict[str, Any]]:
        """Names and sizes in bytes of the files that are used, their rows and the columns; see `fingerprint`."""
        rows = dict[str, int]()
        for group in self._groups:
            rows[self._files[group.file]] = rows.get(self._files[group.file], 0) + group.rows
        facts = {"columns": [self._column, self._label], "rows": [*rows.values()]}
        return [os.path.basename(file) for file in rows], [os.path.getsize(file) for file in rows], facts

    def _load(self, number: int) -> "_Rows":
        group = self._groups[number]
        path = self._files[group.file]
        try:
            rows = _Rows(read_rows(open_parquet(path, self.name), path, group.group, [self._column], group.used))
        except MachineError:  # the pictures are good
            raise
        except (OSError, UserError) as error:
            rows = _Rows([], getattr(error, "strerror", None) or str(error))
        self._cache[number] = rows
        while len(self._cache) > self._cached:
            self._cache.popitem(last=False)
        return rows


class _Rows:
    """The values of a row group, or why it cannot be read, so that it is not tried again for each of its rows."""

    def __init__(self, batches: list[Any], fault: str = "") -> None:
        self.batches, self._fault = batches, fault
        self._starts = [0, *itertools.accumulate(batch.num_rows for batch in batches)]

    def __getitem__(self, row: int) -> Any:
        if self._fault:
            raise OSError(errno.EIO, self._fault)
        number = bisect.bisect_right(self._starts, row) - 1
        try:
            return self.batches[number][0][row - self._starts[number]].as_py()
        except ValueError as error:  # text that is none
            raise OSError(errno.EIO, f"damaged in the parquet file: {error}") from None


def _columns(schema: Any, name: str) -> tuple[list[str], str | None]:
    """Names of the image columns, the one to read first, and of the label column.

    They come from the metadata, or else from the types.
    """
    features = features_of(schema)
    kinds = {key: value.get("_type") for key, value in features.items() if isinstance(value, dict)}
    images = [field.name for field in schema if kinds.get(field.name) == "Image" or _holds_bytes(field.type)]
    images = images or [field.name for field in schema if _array_of(field.type)]
    if not images:
        raise UserError(f"{printable(name)} has no column of images among {', '.join(schema.names)}")
    images.sort(key=lambda column: (kinds.get(column) != "Image", column not in ("image", "img", "jpg", "png")))
    types = {field.name: _kind(field.type) for field in schema}
    return images, label_column(types | {column: kind for column, kind in kinds.items() if kind == "ClassLabel"})


def _names(schema: Any, label: str) -> list[str] | None:
    """The class names of a label column in the file's own order; None where the file has none."""
    feature = features_of(schema).get(label)
    names = feature.get("names") if isinstance(feature, dict) else None
    return [str(value) for value in names] if isinstance(names, list) else None


def _kind(kind: Any) -> str:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_integer(kind) or types.is_floating(kind):  # integers beside missing values are stored as floats
        return "integer"
    return "text" if types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind) else str(kind)


def _array_of(kind: Any) -> tuple[Any, tuple[int, ...] | None] | None:
    """Type of numbers and, where it is stated, shape of a column of arrays: nested lists, or Arrow's tensors."""
    from pyarrow import types

    shape, depth = tuple(getattr(kind, "shape", None) or ()) or None, 0
    kind = getattr(kind, "storage_type", kind)
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    numeric = types.is_integer(kind) or types.is_floating(kind)
    return (
        (kind.to_pandas_dtype(), shape) if numeric and (depth in (2, 3) or (shape and len(shape) in (2, 3))) else None
    )


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)
