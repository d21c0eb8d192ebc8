"""Packs any source into one file: decoded once, at the size that training needs. See `packed` for the layout."""

import contextlib
import errno
import hashlib
import io
import math
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from remask.errors import UserError
from remask.files.escaping import in_utf8, printable
from remask.files.locking import open_lock, try_lock
from remask.files.records import make_folder, sync_folder
from remask.files.text import tmp_beside
from remask.images.decoding import BadImage
from remask.images.levels import Levels, Scaling
from remask.images.loading.image_cache import decoded
from remask.images.loading.workers import each
from remask.images.sources.opening import Source
from remask.images.sources.packed import HEAD_BYTES, SUFFIX, head, table
from remask.images.tools.form import Form
from remask.images.transforms import CentreCrop, resize


@dataclass
class Written:
    """The result of packing a source.

    pictures   number written
    kept       of them, JPEGs that were copied byte for byte
    bytes      size of the file
    left_out   {address of an unusable image: reason}
    """

    pictures: int = 0
    kept: int = 0
    bytes: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


class Item(NamedTuple):
    """One image as it is written; `shape` is its height, width and channels; equal images have one `digest`."""

    data: bytes
    shape: tuple[int, int, int]
    kept: bool
    checksum: int
    digest: bytes


def pack(
    source: Source,
    out: Path,
    form: Form,
    *,
    workers: int = 0,
    max_bad: float = 0.01,
    levels: Levels | None = None,
    progress: Callable[[int, Written], None] = lambda done, so_far: None,
    skipped: Callable[[str], None] = lambda line: None,
) -> Written:
    """Write `out`, which ends in .remask, and nothing else: a run that is stopped leaves at most a .part, which the
    next one overwrites. Unusable images are left out. Raises UserError, also for more of them than the share `max_bad`.

    levels   which values of images deeper than 8 bits become 0 and 255; None: see `decode`
    """
    if out.suffix != SUFFIX:
        raise UserError(f"{out}: a packed set ends in {SUFFIX}; choose such a name")
    if out.exists():
        raise UserError(f"{out} exists already; choose another --out")
    with _tmp_beside(out) as file:
        prepare = Prepare(source, form, levels)
        return _write(source, file, form, prepare, workers, max_bad, progress, skipped)


@contextlib.contextmanager
def _tmp_beside(out: Path) -> Iterator[BinaryIO]:
    """A file beside `out` that gets its name at the end, and is deleted after an error."""
    make_folder(out.parent)
    tmp = tmp_beside(out)  # one name for all who write `out`, whose lock tells them of each other
    with os.fdopen(open_lock(tmp), "rb+") as file:  # not emptied before it is locked
        if not try_lock(file.fileno()):
            raise UserError(f"{out} is being written by another process; wait for it")
        if os.fstat(file.fileno()).st_nlink != 1:
            raise UserError(f"{tmp} is another name of a file elsewhere: remove it")
        try:
            file.truncate(0)
            with open(tmp, "rb+") as original:
                yield original
                original.flush()
                os.fsync(original.fileno())
            os.replace(tmp, out)
            sync_folder(out.parent)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(f"{out}: the disk is full; free some space, or choose a smaller --size") from None
        finally:
            tmp.unlink(missing_ok=True)


def _write(
    source: Source,
    file: BinaryIO,
    form: Form,
    prepare: "Prepare",
    workers: int,
    max_bad: float,
    progress: Callable[[int, Written], None],
    skipped: Callable[[str], None],
) -> Written:
    result, columns, stored, numbers = Written(), _Columns(), dict[bytes, int](), list[int]()
    allowed = max(3, math.ceil(max_bad * len(source))) if max_bad else 0
    file.write(bytes(HEAD_BYTES))
    for i, item in enumerate(each(prepare, len(source), workers)):
        if isinstance(item, str):
            result.left_out[source.where(i)] = item
            skipped(f"{source.where(i)}: {item}")
            if len(result.left_out) > allowed:
                raise UserError(_too_many(source, result.left_out, max_bad))
        else:
            if item.digest not in stored:
                stored[item.digest] = file.tell()
                file.write(item.data)
            columns.add(stored[item.digest], item, source.where(i))
            numbers.append(i)
            result.pictures, result.kept = result.pictures + 1, result.kept + item.kept
        result.bytes = file.tell()
        progress(i + 1, result)
    if not numbers:
        raise UserError(_too_many(source, result.left_out, max_bad))
    labels = None if source.labels is None else [source.labels[i] for i in numbers]
    about = {**asdict(form), "source": printable(source.name), "classes": source.classes, "left_out": result.left_out}
    about["source_left_out"] = source.left_out
    file.write(bytes(-file.tell() % 8))
    start, content = file.tell(), table(about, columns.arrays(labels, form.kind == "raw"))
    file.write(content)
    result.bytes = file.tell()
    file.seek(0)
    file.write(head(content, start))
    return result


class _Columns:
    """The columns of the table while images are added."""

    def __init__(self) -> None:
        self._facts: list[tuple[int, int, int]] = []
        self._shapes: list[tuple[int, int, int]] = []
        self._names: list[bytes] = []

    def add(self, start: int, item: Item, name: str) -> None:
        self._facts.append((start, len(item.data), item.checksum))
        self._shapes.append(item.shape)
        self._names.append(in_utf8(name).encode())

    def arrays(self, labels: list[int] | None, raw: bool) -> dict[str, np.ndarray]:
        """The columns by name, those of 8 bytes a number first, so that all are aligned."""
        start, size, checksum = np.array(self._facts, dtype="<u8").T
        ends = np.cumsum([len(name) for name in self._names], dtype="<u8")
        columns: dict[str, Any] = {"start": start, "size": size, "name_end": ends}
        if labels is not None:
            columns["label"] = np.array(labels, dtype="<i8")
        columns["checksum"] = checksum.astype("<u4")
        if raw:
            columns["shape"] = np.array(self._shapes, dtype="<u4")
        return {**columns, "names": np.frombuffer(b"".join(self._names), dtype=np.uint8)}


class Prepare:
    """i -> the i-th image of a source as it is written, or the reason why it cannot be used."""

    def __init__(self, source: Source, form: Form, levels: Levels | None = None) -> None:
        self._source, self._form, self._scaling = source, form, Scaling(levels, (), ()) if levels else None

    def __call__(self, i: int) -> Item | str:
        try:
            data = self._source.read(i)
        except OSError as error:
            return error.strerror or str(error)
        try:
            original = decoded(data, self._form.channels, self._scaling)
        except BadImage as bad:
            return str(bad)
        image = shrunk(original, self._form)
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        keep = image is original and isinstance(data, bytes) and data[:2] == b"\xff\xd8" and self._form.kind == "jpeg"
        content = data if keep and isinstance(data, bytes) else self._encoded(pixels)
        shape = (int(image.shape[1]), int(image.shape[2]), int(image.shape[0]))
        digest = hashlib.blake2b(content + repr(shape).encode(), digest_size=16).digest()
        return Item(content, shape, keep, zlib.crc32(content), digest)

    def _encoded(self, pixels: np.ndarray) -> bytes:
        if self._form.kind == "raw":
            return pixels.tobytes()
        stream = io.BytesIO()
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        image.save(stream, "JPEG", quality=self._form.quality)
        return stream.getvalue()


def shrunk(image: UInt8[Tensor, "C H W"], form: Form) -> UInt8[Tensor, "C h w"]:
    """The image at the size of the form; the same object where it has that size."""
    rows, columns = image.shape[1:]
    if form.exactly:
        return image if (rows, columns) == form.exactly else CentreCrop(form.exactly, ratio=1.0)(image)
    shorter = min(rows, columns)
    if not form.shorter or shorter <= form.shorter:
        return image
    return resize(image, (round(rows * form.shorter / shorter), round(columns * form.shorter / shorter)))


def _too_many(source: Source, bad: dict[str, str], max_bad: float) -> str:
    first = "; ".join(f"{where}: {reason}" for where, reason in list(bad.items())[:3])
    return (
        f"{len(bad)} of {len(source)} images cannot be used, more than --max-bad {max_bad:g} allows ({first}): "
        f"remask data check lists them; repair or remove them, or raise --max-bad"
    )
