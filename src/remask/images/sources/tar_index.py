"""What is in a tar shard: its images, the class of each, and how many of its members are left out, by reason.

An image takes the class of the .cls whose name is the image's up to one of its dots, the longest first: a.b.png
takes a.b.png.cls, a.b.cls or a.cls. (WebDataset cuts all names at the first dot, and a.left.png and a.right.png would
be one sample.) A .cls that no image takes this way goes to the image whose name it extends: a.label.cls to a.png.
Hard links and symbolic ones are further names of what they lead to in the same shard.
"""

import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from remask.errors import UserError
from remask.files.bounds import MOST_HEADER, MOST_NAME, open_regular
from remask.files.text import decoded
from remask.images import heif
from remask.images.sources.files import EXTENSIONS, is_image, printable
from remask.images.sources.labels import integer_of, says_none
from remask.images.sources.left_out import BROKEN_LINKS, HIDDEN_FILES, SPECIAL, Patterns, is_hidden, kind_of

MASKS = frozenset(
    ("mask", "masks", "seg", "segmentation", "semantic", "instance", "panoptic", "label", "labels", "annotation", "gt",
     "depth", "normal", "normals", "edge", "edges", "trimap")
)  # fmt: skip
"""Words before the extension of files that annotate an image: a.seg.png beside a.jpg is no image."""

MASKS_OF_IMAGES = "masks beside their picture"
FORMATS = "pictures that are there in another format too"
REPLACED = "members that a later one of the name replaces"
SPARSE = "sparse files"
UNUSED_CLASSES = ".cls files without a picture"
LONGEST = 1 << 16
"""Bytes of a .cls at most."""


class Member(NamedTuple):
    """A file in a tar: its name, where its content begins, and how long it is."""

    name: str
    offset: int
    size: int


@dataclass
class Shard:
    """The images of a shard in its own order, each with the text of its class number or None.

    left_out   number of members that are left out, by reason
    """

    images: list[tuple[Member, str | None]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def index(shard: str, patterns: Patterns | None = None) -> Shard:
    """The images of an uncompressed tar, by its headers. Raises UserError for any other file, or a truncated one."""
    result = Shard()
    try:
        members = _members(shard, result.left_out)
    except (tarfile.TarError, OSError, EOFError, ValueError, LookupError, ArithmeticError, TypeError) as error:
        # tarfile raises all of these on damaged headers
        raise UserError(f"{printable(shard)} cannot be read as an uncompressed tar: {error}") from None
    except RecursionError:
        raise UserError(
            f"{printable(shard)} cannot be read as an uncompressed tar: extended headers follow one another without end"
        ) from None
    if any(member.offset + member.size > os.path.getsize(shard) for member in members):
        raise UserError(f"{printable(shard)} is cut short: copy it again")
    images, classes = list[Member](), dict[str, Member]()
    for member in members:
        name = member.name
        if any(is_hidden(folder) and folder != ".." for folder in name.split("/")):
            result.left_out[HIDDEN_FILES] += 1
        elif patterns and patterns.exclude(name):
            continue
        elif is_image(name):
            images.append(member)
        elif name.lower().endswith(".cls"):
            classes[name[: -len(".cls")]] = member
        else:
            result.left_out[heif.REASON if heif.is_heif(name) else kind_of(name)] += 1
    chosen = _one_each(images, result.left_out)
    with open_regular(shard) as file:
        numbers = {stem: _class_number(file, member, shard) for stem, member in classes.items()}
    stems = _classes(chosen, numbers)
    result.images = [
        (member, None if stem is None else numbers[stem]) for member, stem in zip(chosen, stems, strict=True)
    ]
    if lonely := len(numbers) - len({stem for stem in stems if stem is not None}):
        result.left_out[UNUSED_CLASSES] += lonely
    return result


class _Header(tarfile.TarInfo):
    """A header whose sizes cannot lead tarfile backwards (CVE-2025-8194 of CPython), nor into a gigabyte of names."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.ReadError("a size below 0")
        return int(super()._block(count))  # type: ignore[misc]

    def _proc_gnulong(self, tar: tarfile.TarFile) -> Any:
        self._check_size()
        return super()._proc_gnulong(tar)  # type: ignore[misc]

    def _proc_pax(self, tar: tarfile.TarFile) -> Any:
        self._check_size()
        return super()._proc_pax(tar)  # type: ignore[misc]

    def _check_size(self) -> None:
        if self.size > MOST_HEADER:
            raise tarfile.ReadError(f"an extended header of {self.size:,} bytes")

    def _proc_gnusparse_10(self, info: tarfile.TarInfo, headers: Any, tar: tarfile.TarFile) -> None:
        """Sparse files are left out: tarfile would read their map, to the end of the file and on."""
        info.sparse = b""


def _headers(shard: str) -> Iterator[tarfile.TarInfo]:
    """All headers of a tar, and of others that are joined to its end."""
    with open_regular(shard, buffering=1 << 16) as file:
        begin, size = 0, os.fstat(file.fileno()).st_size
        while True:
            file.seek(begin)
            with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape", tarinfo=_Header) as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would hold all headers in memory
                    if max(len(info.name), len(info.linkname)) > MOST_NAME or info.size < 0:
                        raise tarfile.ReadError(f"a name of more than {MOST_NAME:,} bytes, or a size below 0")
                    yield info
                at, begin = begin, tar.offset
            if begin == at and file.seek(begin) == at and file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {at:,}")  # tarfile takes it for the end
            file.seek(begin)
            while begin < size and not file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                begin += tarfile.BLOCKSIZE
            if begin >= size:
                return


def _members(shard: str, left_out: Counter[str]) -> list[Member]:
    """Files of a tar under all their names, in its order; of equal names the last one, as tar itself unpacks them."""
    files, links = dict[str, Member | None](), dict[str, tuple[str, bool]]()
    for info in _headers(shard):
        name = _normal(info.name)
        if info.isdir():
            continue
        if name in files:
            left_out[REPLACED] += 1
            links.pop(name, None)
        if info.issym() or info.islnk():
            files[name], links[name] = None, (info.linkname, info.issym())
        elif info.isreg() and not info.issparse():
            files[name] = Member(name, info.offset_data, info.size)
        else:
            files.pop(name, None)
            left_out[SPARSE if info.isreg() else SPECIAL] += 1
    for name in links:
        target = _resolved(name, files, links)
        files[name] = None if target is None else target._replace(name=name)
        if target is None:
            left_out[BROKEN_LINKS] += 1
    return [member for member in files.values() if member is not None]


def _resolved(
    name: str, files: dict[str, Member | None], links: dict[str, tuple[str, bool]]
) -> Member | None:  # fmt: skip
    """The file that a link leads to, over further links and linked folders; None where it leads nowhere."""
    for _ in range(40):  # as many as Linux follows
        if name not in links and files.get(name) is not None:
            return files[name]
        names = name.split("/")
        steps = ["/".join(names[:count]) for count in range(1, len(names) + 1)]
        link = next((step for step in steps if step in links), None)
        if link is None:
            return None
        target, symbolic = links[link]
        begin = posixpath.join(posixpath.dirname(link), target) if symbolic and not target.startswith("/") else target
        name = _normal(posixpath.join(begin, name[len(link) :].lstrip("/")))
    return None


def _normal(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")


def _stems(name: str) -> Iterator[str]:
    """ "x/a.b.png" -> "x/a.b.png", "x/a.b", "x/a"."""
    yield name
    folder, base = posixpath.split(name)
    while "." in base[1:]:
        base = base[: base.rindex(".")]
        yield posixpath.join(folder, base)


def _one_each(images: list[Member], left_out: Counter[str]) -> list[Member]:
    """The images that are no masks of others; of one name in several formats, the first format in EXTENSIONS."""
    formats: dict[str, list[Member]] = {}
    for member in images:
        formats.setdefault(posixpath.splitext(member.name)[0], []).append(member)
    dropped = set[Member]()
    for stem, members in formats.items():
        begin, dot, last = stem.rpartition(".")
        if dot and last.lower() in MASKS and begin in formats:
            left_out[MASKS_OF_IMAGES] += len(members)
            dropped.update(members)
        else:
            first = min(_rank(member.name) for member in members)
            others = [member for member in members if _rank(member.name) > first]
            dropped.update(others)
            left_out[FORMATS] += len(others)
    left_out += Counter()  # without zeros
    return [member for member in images if member not in dropped]


def _rank(name: str) -> int:
    every = (*EXTENSIONS, *heif.EXTENSIONS)
    return every.index(posixpath.splitext(name)[1].lower())


def _classes(images: list[Member], numbers: dict[str, str]) -> list[str | None]:
    """For each image the stem of the .cls that it takes, or None."""
    stems = [next((stem for stem in _stems(member.name) if stem in numbers), None) for member in images]
    rest: dict[str, list[str]] = {}
    for stem in numbers.keys() - set(stems):
        for begin in list(_stems(stem))[1:]:
            rest.setdefault(begin, []).append(stem)
    for place, member in enumerate(images):
        if stems[place] is None and len(candidates := rest.get(posixpath.splitext(member.name)[0], [])) == 1:
            stems[place] = candidates[0]
    return stems


def _class_number(file: BinaryIO, member: Member, shard: str) -> str:
    file.seek(member.offset)
    where = f"{printable(shard)}: {printable(member.name)}"
    text = decoded(file.read(min(member.size, LONGEST)), where).strip()
    if integer_of(text) is None and not (text and says_none(text)):
        raise UserError(
            f"{where} holds no class number but {text[:20].encode()!r}: number the classes, or unpack the tar into a "
            "folder of each class"
        )
    return text


__all__ = ["Member", "Shard", "index"]
