"""A packed set: one file of images that is mapped into memory, with labels, class names and the images' names.

    64 bytes   head: magic, version, where the table lies, its checksum, the head's own
    images     one after the other: JPEGs, or uint8 pixels HWC; equal ones once
    table      JSON of the whole set, then columns: start, size and checksum of each image, shape, label, name

The head is written last, and then the file gets its name: a file of that name is complete.
"""

import errno
import json
import math
import mmap
import os
import struct
import sys
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from remask.errors import UserError
from remask.files.bounds import open_regular
from remask.files.escaping import on_one_line
from remask.images.sources.files import printable

MAGIC, VERSION, SUFFIX = b"\x89remask\n", 1, ".remask"
HEAD = struct.Struct("<8sIIQQI")  # magic, version, checksum of the table, its start and length, checksum of these
HEAD_BYTES = 64
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class Packed:
    """The images of a packed file. Each is compared with its checksum when a process first reads it."""

    def __init__(self, name: str, path: str, limit: int | None = None) -> None:
        self.name, self._path, self._limit = name, os.path.abspath(path), limit
        self._open()

    def _open(self) -> None:
        self._bytes = _mapping(self._path, self.name)
        about, columns = _table(self._bytes, self.name)
        self.about: Mapping[str, Any] = about
        self._start, self._size, self._sums = columns["start"], columns["size"], columns["checksum"]
        self._shapes, self._ends, self._names = columns.get("shape"), columns["name_end"], columns["names"]
        self._length = min(len(self._start), self._limit or len(self._start))
        labels = columns.get("label")
        self.labels: list[int] | None = None if labels is None else labels[: self._length].tolist()
        self.classes: list[str] | None = about["classes"]
        self.left_out: dict[str, int] = dict(about.get("source_left_out", {}))
        if unusable := len(about.get("left_out", {})):
            self.left_out["pictures that could not be used when it was packed"] = unusable
        self._checked = np.zeros(self._length, dtype=bool)

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_path": self._path, "_limit": self._limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return self._length

    def read(self, i: int) -> bytes | np.ndarray:
        """A JPEG, or pixels HWC that lie in the file and are not copied. Raises OSError where the file is damaged."""
        start = int(self._start[i])
        data = self._bytes[start : start + int(self._size[i])]
        if not self._checked[i]:
            if zlib.crc32(data.data) != self._sums[i]:
                raise OSError(errno.EIO, "damaged in the packed file: its checksum differs")
            self._checked[i] = True
        return data.tobytes() if self._shapes is None else data.reshape(self._shapes[i])

    def where(self, i: int) -> str:
        return f"{printable(os.path.basename(self._path))}: {self._name_of(i)}"

    def _name_of(self, i: int) -> str:
        begin, end = int(self._ends[i - 1]) if i else 0, int(self._ends[i])
        return on_one_line(self._names[begin:end].tobytes().decode("utf-8", "surrogateescape"))

    def entries(self) -> tuple[list[str], list[int], dict[str, Any]]:
        """Names, sizes in bytes, and a checksum of the checksums in the table; see `fingerprint`."""
        names, sizes = [self._name_of(i) for i in range(self._length)], self._size[: self._length].tolist()
        return names, sizes, {"checksum": zlib.crc32(np.ascontiguousarray(self._sums[: self._length]).data)}


def is_packed(path: str) -> bool:
    """Whether a file is a packed set, by its first bytes or its name."""
    with open_regular(path) as file:
        return file.read(len(MAGIC)) == MAGIC or path.lower().endswith(SUFFIX)


def head(table: bytes, start: int) -> bytes:
    """The first bytes of a file whose table lies at `start`."""
    fields = MAGIC, VERSION, zlib.crc32(table), start, len(table)
    checksum = zlib.crc32(HEAD.pack(*fields, 0))
    return HEAD.pack(*fields, checksum).ljust(HEAD_BYTES, b"\0")


def table(about: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of a table: JSON of the facts in `about` and of the columns' types and shapes, then the columns."""
    kinds = {name: [column.dtype.str, list(column.shape)] for name, column in columns.items()}
    text = json.dumps({**about, "columns": kinds}).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(column.tobytes() for column in columns.values())])


def _mapping(path: str, name: str) -> np.ndarray:
    """The bytes of a file, mapped privately: writable, as torch wants them, with no effect on the file."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size < HEAD_BYTES:
            raise UserError(f"{printable(name)} is no packed set: it is shorter than a head; pack it again")
        flags, protection = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        return np.frombuffer(mmap.mmap(file.fileno(), 0, flags=flags, prot=protection), dtype=np.uint8)


def _table(data: np.ndarray, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    magic, version, checksum, start, length, head_checksum = HEAD.unpack(data[: HEAD.size].tobytes())
    if magic != MAGIC:
        raise UserError(f"{printable(name)} is no packed set: write one with remask data pack SRC --out NAME{SUFFIX}")
    if version != VERSION:
        raise UserError(f"{printable(name)} is packed in version {version}, this remask reads {VERSION}: pack it again")
    if head_checksum != zlib.crc32(HEAD.pack(magic, version, checksum, start, length, 0)):
        raise UserError(f"{printable(name)} is damaged: its head does not fit its checksum; copy or pack it again")
    if start + length != len(data):
        raise UserError(
            f"{printable(name)} has {len(data):,} bytes where its head says {start + length:,}: copy or pack it again"
        )
    pixels = data[start:]
    if zlib.crc32(pixels.data) != checksum:
        raise UserError(f"{printable(name)} is damaged: its table does not fit its checksum; copy or pack it again")
    try:
        at = 8 + int.from_bytes(pixels[:8].tobytes(), "little")
        about = json.loads(pixels[8:at].tobytes())
        columns = _columns(pixels, at, dict(about.pop("columns")))
        _check(about, columns, start)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        why = " ".join(str(error).split())  # a file that somebody made: its checksums are right, its table is none
        raise UserError(f"{printable(name)} holds a table that no remask wrote ({why}): pack it again") from None
    return about, columns


COLUMNS = {"start": "<u8", "size": "<u8", "name_end": "<u8", "label": "<i8", "checksum": "<u4", "shape": "<u4",
           "names": "|u1"}  # fmt: skip
"""The columns of a table and their types; label is absent without labels, and shape from JPEGs."""


def _columns(pixels: np.ndarray, at: int, kinds: dict[str, Any]) -> dict[str, np.ndarray]:
    """The columns that lie behind one another from byte `at` on, by their types and shapes."""
    columns = {}
    for key, (kind, shape) in kinds.items():
        if COLUMNS[key] != kind or not all(type(length) is int and 0 <= length <= len(pixels) for length in shape):
            raise ValueError(f"a column {key} of type {kind} and shape {shape}")
        size = math.prod(shape) * np.dtype(kind).itemsize
        columns[key] = pixels[at : at + size].view(kind).reshape(shape)
        at += size
    return columns


def _check(about: Mapping[str, Any], columns: Mapping[str, np.ndarray], end: int) -> None:
    """Raise ValueError or KeyError unless the columns describe images that lie before `end`, and names and classes."""
    start, size, ends, names = (columns[key] for key in ("start", "size", "name_end", "names"))
    count = len(start)
    rows = [start, size, ends, columns["checksum"], *([columns["label"]] if "label" in columns else [])]
    if not count or any(column.shape != (count,) for column in rows) or names.ndim != 1:
        raise ValueError("columns of different lengths, or none")
    if (start < HEAD_BYTES).any() or (start > end).any() or (size > end - start).any():
        raise ValueError("images outside the file")
    if (ends > len(names)).any() or (ends[1:] < ends[:-1]).any():
        raise ValueError("names outside the table")
    if "shape" in columns:
        shape = columns["shape"]
        if shape.shape != (count, 3) or (shape.astype(np.float64).prod(axis=1) != size).any() or not shape.all():
            raise ValueError("pixels of other shapes than their bytes")
    classes, label = about["classes"], columns.get("label")
    if classes is not None:
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes that are no names")
        if label is None or label.min() < 0 or label.max() >= len(classes):
            raise ValueError("class numbers without a name")
    counts = about.get("source_left_out", {})
    if not isinstance(about.get("left_out", {}), dict) or not all(type(n) is int for n in dict(counts).values()):
        raise ValueError("no numbers of what was left out")
