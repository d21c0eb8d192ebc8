"""Pictures that lie in files: a folder of any shape, a list file, or one picture."""

import os
import re
from collections import Counter
from dataclasses import dataclass

from remask.types import UserError

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".j2k", ".avif",
)  # fmt: skip
"""Names, in any case, that are taken for pictures. What a file really is, its content says."""

SPLIT = re.compile(r"(?:^|[-_.])(train|test|validation|valid|val|dev)(?=[-_.\d]|$)", re.IGNORECASE)
"""A part of a file or folder name that says which split it belongs to."""


@dataclass
class Files:
    """Pictures by path. `paths` are read, `shown` are said."""

    name: str
    paths: list[str]
    shown: list[str]
    labels: list[int] | None = None
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes:
        with open(self.paths[i], "rb") as file:
            return file.read()

    def where(self, i: int) -> str:
        return printable(self.shown[i])


def printable(path: str) -> str:
    """A path on one line that any terminal prints: odd bytes and control characters are escaped."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_picture(path: str) -> bool:
    """Whether the name says so."""
    return path.lower().endswith(EXTENSIONS)


def files_under(root: str) -> list[str]:
    """Every file below a folder, relative to it, sorted part by part; hidden files and folders are left out.

    Links are followed. Each real folder is entered once, under its own name before that of a link, so links cannot
    loop. A link to nothing is kept: to leave it out in silence would hide a missing picture.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    folders, linked = [""], list[str]()
    while folders or linked:
        folder = folders.pop() if folders else linked.pop(0)
        try:
            at = os.stat(os.path.join(root, folder))
            if (at.st_dev, at.st_ino) in seen:
                continue
            seen.add((at.st_dev, at.st_ino))
            entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"cannot list {printable(os.path.join(root, folder))}: {error.strerror}") from None
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if os.path.isdir(entry.path):
                (linked if entry.is_symlink() else folders).append(path)
            elif os.path.isfile(entry.path) or entry.is_symlink():  # not pipes and sockets, which never end
                found.append(path)
    return sorted(found, key=lambda path: path.split(os.sep))


def open_files(name: str, root: str, relative: list[str], limit: int | None) -> Files:
    """Pictures of a folder in sorted order; first-level folders are classes if every picture lies in one of several.

    Folders named after splits (train, val, test) are no classes. With a limit, class folders give the first class
    first: the order is that of the names.
    """
    labels, classes = None, None
    tops = [path.split(os.sep)[0] for path in relative if os.sep in path]
    names = sorted(set(tops))
    if len(tops) == len(relative) and len(names) > 1 and not all(SPLIT.match(top) for top in names):
        number = {top: i for i, top in enumerate(names)}
        labels, classes = [number[top] for top in tops][:limit], [printable(top) for top in names]
    relative, typed = relative[:limit], os.path.expanduser(name)
    absolute = os.path.abspath(root)
    paths = [os.path.join(absolute, path) for path in relative]
    return Files(name, paths, [os.path.join(typed, path) for path in relative], labels, classes)


def only_folder(source: Files) -> None:
    """Take the one folder in which all pictures of a folder lie for their class: a test may have a single one."""
    relative = [os.path.relpath(path, os.path.abspath(os.path.expanduser(source.name))) for path in source.paths]
    tops = {path.split(os.sep)[0] if os.sep in path else "" for path in relative}
    if len(tops) == 1 and not tops & {"", os.pardir} and not SPLIT.match(top := tops.pop()):
        source.labels, source.classes = [0] * len(relative), [printable(top)]


def open_list(name: str, path: str, limit: int | None) -> Files:
    """A .txt with one path per line, relative to it, and perhaps a tab or space and a class number; # starts a comment.

    The numbers are the classes' names. A picture whose name begins with # is written ./#name.
    """
    paths: list[str] = []
    numbers: list[int | None] = []
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            text = line.rstrip("\r\n")
            if not text.strip() or text.startswith("#"):
                continue
            labelled = re.fullmatch(r"(.+\.\w+)[ \t]+([+-]?\d+)", text)
            paths.append(labelled[1] if labelled else text)
            numbers.append(int(labelled[2]) if labelled else None)
            if len(paths) == limit:
                break
    if not paths:
        raise UserError(f"{printable(name)} names no images: it needs one path per line")
    labels = [number for number in numbers if number is not None]
    if labels and len(labels) < len(paths):
        first = paths[numbers.index(None)]
        raise UserError(f"{printable(name)} gives class numbers but none for {printable(first)}: give all or none")
    folder = os.path.dirname(os.path.abspath(path))
    return Files(name, [os.path.join(folder, p) for p in paths], paths, labels or None)


def describe(relative: list[str]) -> str:
    """What a folder holds instead of pictures, in a few words."""
    if not relative:
        return "it is empty"
    kinds = Counter(os.path.splitext(path)[1].lower() or "no extension" for path in relative).most_common(3)
    return f"it holds {len(relative)} other files ({', '.join(f'{printable(kind)} {n}' for kind, n in kinds)})"


def one_split(name: str, files: list[str]) -> None:
    """Refuse to mix the splits of a set, which shards of one folder often are."""
    splits = {found[1].lower() for file in files if (found := SPLIT.search(os.path.basename(file)))}
    if len(splits) > 1:
        example = next(os.path.basename(file) for file in files if SPLIT.search(os.path.basename(file)))
        raise UserError(
            f"{printable(name)} holds several splits ({', '.join(sorted(splits))}): name one by a file or a pattern, "
            f"such as {printable(os.path.join(name, example))}"
        )
