"""The inventory of a source: names, sizes and labels in its order, so that changes show. No image is read for it.

Names are relative to the source's root, and times of files do not count: a folder that was moved is the same source.
An edit that keeps a name and its size shows in `contents` alone, which reads everything.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from remask.files.bounds import open_regular, read_file
from remask.images.sources.files import Files, files_under
from remask.images.sources.subset import Subset

GONE = -1
"""The size of a file that is not there."""
SAMPLED = 16
"""Blocks of a file of weights that are read, evenly spread over it."""
MANY = 200_000
"""Number of images whose sizes take some seconds to look up on a local disk."""
BLOCK = 1 << 16
THREADS = 8
"""Threads that look up sizes: for files on a network, where each takes its time."""


@dataclass(frozen=True)
class Inventory:
    """A source's images, masks or files, in its own order.

    what      "pictures", "masks" or "files"
    count     how many there are; names and sizes may be fewer, where the source has none (arrays) or packs many in one
              file (parquet)
    sizes     bytes, -1 where a file is gone
    labels    class numbers, where they are used; classes are their names
    facts     other values that change with the data, by name: columns, rows, checksums
    hashes    of the contents, where they were computed
    read      number of an entry -> its content, encoded or as an array
    threads   how many may call `read` at once
    """

    what: str
    count: int
    names: list[str]
    sizes: Int64[np.ndarray, "n"]
    labels: Int64[np.ndarray, "m"] | None = None
    classes: list[str] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    hashes: UInt64[np.ndarray, "m"] | None = None
    read: Callable[[int], Any] | None = field(default=None, repr=False, compare=False)
    threads: int = 1

    def digest(self) -> str:
        """A short text that changes with anything but the hashes of contents."""
        sums = hashlib.blake2b(digest_size=16)
        sums.update(json.dumps([self.what, self.count, self.classes, self.facts], sort_keys=True).encode())
        sums.update(packed_names(self.names))
        sums.update(self.sizes.tobytes())
        if self.labels is not None:
            sums.update(self.labels.tobytes())
        return sums.hexdigest()

    def hashed(self) -> "Inventory":
        """The same with the hash of every content, each of which is read."""
        read = self.read
        return self if read is None else replace(self, hashes=contents(read, self.count, self.threads))


def inventory(source: Any, labelled: bool = False) -> Inventory:
    """The inventory of a source of images; of a `Subset` that of all images behind it.

    labelled   whether labels are used, so that a changed label is a change of the data
    """
    if isinstance(source, Subset):
        return inventory(source.source, labelled)
    names, sizes, facts = _entries(source)
    labels = None if not labelled or source.labels is None else np.array(source.labels, np.int64)
    classes = [str(name) for name in source.classes] if labelled and source.classes else None
    threads = THREADS if isinstance(source, Files) else 1  # other sources have caches without locks
    return Inventory("pictures", len(source), names, sizes, labels, classes, facts, read=source.read, threads=threads)


def announce(count: int, say: Callable[[str], None]) -> None:
    """Announce, by `say`, that the sizes of `count` files are looked up, where that takes seconds."""
    if count >= MANY:
        say(f"looking up the sizes of {count:,} files")


def of_file(path: str, hash_all: bool = False) -> Inventory:
    """The inventory of a file of weights or annotations, or of a folder of such: sizes and a hash of each file.

    The hash is of evenly spread blocks: two networks of one kind have files of one size, so that sizes tell nothing.
    The name of a single file does not count.
    hash_all   hash the whole content of each file
    """
    names = files_under(path) if os.path.isdir(path) else []
    paths = [os.path.join(path, name) for name in names] or [path]
    sizes = sizes_of(paths)
    facts = {"bytes": sizes.tolist(), "blocks": [sampled(file, None if hash_all else SAMPLED) for file in paths]}
    result = Inventory("files", len(paths), names, sizes if names else sizes[:0], facts=facts)
    return replace(result, read=lambda i: sampled(paths[i], None).encode())


def sampled(path: str, blocks: int | None = SAMPLED) -> str:
    """A hash of so many blocks of 64 KiB, evenly spread over a file, or of all of it; "" where it cannot be read."""
    sums = hashlib.blake2b(digest_size=16)
    try:
        with open_regular(path) as file:
            total = max(1, -(-os.fstat(file.fileno()).st_size // BLOCK))
            for number in range(min(total, blocks or total)):
                file.seek(BLOCK * (number * (total - 1) // max(min(total, blocks or total) - 1, 1)))
                sums.update(file.read(BLOCK))
    except OSError:
        return ""
    return sums.hexdigest()


def sizes_of(paths: Sequence[str]) -> Int64[np.ndarray, "n"]:
    """Bytes of each file; -1 where there is none."""

    def chunk_sizes(begin: int) -> list[int]:
        return [_size(path) for path in paths[begin : begin + 4096]]

    with ThreadPoolExecutor(THREADS, "remask-sizes") as pool:
        result = [size for sizes in pool.map(chunk_sizes, range(0, len(paths), 4096)) for size in sizes]
    return np.array(result, np.int64)


def contents(read: Callable[[int], Any], count: int, threads: int = 1) -> UInt64[np.ndarray, "n"]:
    """The hash of each of `count` contents; 0 where one cannot be read."""

    def content_hash(i: int) -> int:
        try:
            data = read(i)
        except OSError:
            return 0
        data = np.ascontiguousarray(data).tobytes() if isinstance(data, np.ndarray) else data
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1

    if threads == 1:
        return np.fromiter(map(content_hash, range(count)), np.uint64, count)

    def chunk_hashes(begin: int) -> list[int]:
        return [content_hash(i) for i in range(begin, min(begin + 64, count))]

    with ThreadPoolExecutor(threads, "remask-contents") as pool:
        result = [value for values in pool.map(chunk_hashes, range(0, count, 64)) for value in values]
    return np.array(result, np.uint64)


def below(paths: Sequence[str], root: str) -> list[str]:
    """Paths relative to `root`; absolute paths outside of it are made relative to their common folder."""
    root = root.rstrip(os.sep) + os.sep
    if paths and not paths[0].startswith(root):
        if not all(os.path.isabs(path) for path in (paths[0], min(paths), max(paths))):  # a list may mix both
            return list(paths)
        root = os.path.commonpath([os.path.dirname(min(paths)), os.path.dirname(max(paths))]).rstrip(os.sep) + os.sep
    return [path.removeprefix(root) for path in paths]


def packed_names(names: Sequence[str]) -> bytes:
    """Names in UTF-8, joined by NUL bytes; bytes of a name that are no UTF-8 stay as they are."""
    return "\0".join(names).encode("utf-8", "surrogateescape")


def _entries(source: Any) -> tuple[list[str], Int64[np.ndarray, "n"], dict[str, Any]]:
    """Names, sizes and facts of a source of any kind."""
    if isinstance(source, Files):
        names = below(source.shown, os.path.expanduser(source.name))
        return names, sizes_of(source.paths), {}
    if hasattr(source, "entries"):
        names, sizes, facts = source.entries()
        return below(names, source.name), np.array(sizes, np.int64), facts  # a packed set keeps whole paths
    path = os.path.expanduser(source.name)
    names = [os.path.basename(path)] if os.path.isfile(path) else []
    return names, sizes_of([path] if names else []), {}


def reader(paths: Sequence[str]) -> Callable[[int], bytes]:
    """i -> the bytes of file i. Raises OSError when it is called."""
    return lambda i: read_file(paths[i])


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return GONE


__all__ = [
    "GONE", "Inventory", "announce", "below", "contents", "inventory", "of_file", "packed_names", "reader", "sampled",
    "sizes_of",
]  # fmt: skip
