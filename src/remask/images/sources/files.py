"""Images that lie in files: a folder of any shape, or one image."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from remask.errors import UserError
from remask.files.bounds import read_file
from remask.files.escaping import printable as printable
from remask.files.escaping import quoted
from remask.images import heif
from remask.images.sources.left_out import HIDDEN_FILES, HIDDEN_FOLDERS, REPEATED, SPECIAL, Patterns, is_hidden, kind_of
from remask.images.sources.splits import are_splits, chosen, folders_below, kinds_of, shared_by, split_of

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".j2k", ".avif", ".npy", ".npz",
)  # fmt: skip
"""Extensions, in any case, of files that are taken for images. Decoding goes by their content."""


@dataclass
class Files:
    """Images by path.

    paths        files to read
    shown        the same files as messages name them
    splits       number of images of each split
    unlabelled   why there are no labels, where the source has a column of them
    remarks      lines for the user at the start of a run
    """

    name: str
    paths: list[str]
    shown: list[str]
    labels: list[int] | None = None
    classes: list[str] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    unlabelled: str = ""
    remarks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes:
        return read_file(self.paths[i])

    def where(self, i: int) -> str:
        return printable(self.shown[i])


def is_image(path: str) -> bool:
    """Whether a path has an image's extension, and a reader for it is installed."""
    return path.lower().endswith(EXTENSIONS) or (heif.is_heif(path) and heif.can_read())


def sorted_out(paths: Sequence[str], left_out: Counter[str]) -> list[str]:
    """The paths of images, by their extensions; the others are counted in `left_out`, by reason."""
    images = [path for path in paths if is_image(path)]
    accepted = set(images)
    left_out.update(heif.REASON if heif.is_heif(path) else kind_of(path) for path in paths if path not in accepted)
    return images


def files_under(root: str, patterns: Patterns | None = None, left_out: Counter[str] | None = None) -> list[str]:
    """Every file below a folder, relative to it, sorted by its folders and name; hidden ones are left out.

    Links are followed. Each real folder is entered once, under its own name before that of a link, so links cannot
    loop. A broken link is included: to leave it out in silence would hide a missing image.

    patterns   of paths that are excluded; such folders are not entered
    left_out   counts the paths left out, by reason, except by patterns, which have counts of their own
    Raises UserError for a folder that cannot be read.
    """
    files: list[str] = []
    visited: set[tuple[int, int]] = set()
    folders, linked = [""], list[str]()
    counts = Counter[str]() if left_out is None else left_out
    while folders or linked:
        folder = folders.pop() if folders else linked.pop(0)
        try:
            at = os.stat(os.path.join(root, folder))
            if (at.st_dev, at.st_ino) in visited:
                counts[REPEATED] += 1
                continue
            visited.add((at.st_dev, at.st_ino))
            entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(_unlisted(root, folder, error)) from None
        for entry in entries:
            path = os.path.join(folder, entry.name)
            is_folder = os.path.isdir(entry.path) or entry.is_dir(follow_symlinks=False)
            if is_hidden(entry.name):
                counts[HIDDEN_FOLDERS if is_folder else HIDDEN_FILES] += 1
            elif patterns and patterns.exclude(path):
                continue
            elif is_folder:
                (linked if entry.is_symlink() else folders).append(path)
            elif os.path.isfile(entry.path) or entry.is_file(follow_symlinks=False) or not os.path.exists(entry.path):
                files.append(path)  # a link to nothing and a file without permission too: named when they are read
            else:
                counts[SPECIAL] += 1  # reading a pipe, a device or a socket, or a link to one, may never end
    return sorted(files, key=lambda path: path.split(os.sep))


def _unlisted(root: str, folder: str, error: OSError) -> str:
    line = f"cannot list {printable(os.path.join(root, folder) if folder else root)}: {error.strerror}"
    return f"{line}; to go on without it, give --exclude {quoted(folder)}" if folder else line


def open_files(
    name: str, root: str, relative: list[str], limit: int | None, left_out: dict[str, int] | None = None
) -> Files:
    """Images of a folder in sorted order; first-level folders are classes if every image lies in one of several.

    Folders named after splits (train, val, test) are no classes. With a limit, class folders give the first class
    first: the order is that of the names.
    """
    labels, classes = None, None
    tops = [path.split(os.sep)[0] for path in relative if os.sep in path]
    names = sorted(set(tops))
    splits = splits_of(relative)
    if len(tops) == len(relative) and len(names) > 1 and not are_splits(names):
        number = {top: i for i, top in enumerate(names)}
        labels, classes = [number[top] for top in tops][:limit], [printable(top) for top in names]
    relative, typed = relative[:limit], os.path.expanduser(name)
    absolute = os.path.abspath(root)
    paths = [os.path.join(absolute, path) for path in relative]
    shown = [os.path.join(typed, path) for path in relative]
    return Files(name, paths, shown, labels, classes, left_out or {}, splits)


def only_folder(source: Files) -> None:
    """Label all images with the name of the single folder that holds them, in place: a test may have one class."""
    relative = [os.path.relpath(path, os.path.abspath(os.path.expanduser(source.name))) for path in source.paths]
    tops = {path.split(os.sep)[0] if os.sep in path else "" for path in relative}
    if len(tops) == 1 and not tops & {"", os.pardir} and not are_splits([top := tops.pop()]):
        source.labels, source.classes = [0] * len(relative), [printable(top)]


def splits_of(relative: Sequence[str]) -> dict[str, int]:
    """Number of images of each split, by the first level of several folders; empty where these are no splits."""
    folders = [path.split(os.sep)[:-1] for path in relative]
    shared = shared_by(folders)
    tops = Counter("/".join(names[: shared + 1]) for names in folders if len(names) > shared)
    names = [top.rpartition("/")[2] for top in tops]
    return dict(sorted(tops.items())) if len(names) > 1 and are_splits(names) else {}


def of_splits(name: str, splits: Sequence[str]) -> str:
    """The message for a source of several splits that is given as one labelled set, with what to type instead."""
    named = ", ".join(printable(split) for split in sorted(splits))
    line = f"{printable(name)} has no labels of its own, it holds the splits {named}"
    if os.path.isfile(os.path.expanduser(name)):  # a list or a tar
        return f"{line}: make a file of each, for --data and --val"
    train, val = (quoted(os.path.join(name, split)) for split in chosen(splits))
    return f"{line}: give --data {train} --val {val}"


def describe(relative: list[str]) -> str:
    """A few words on a folder without images: the most frequent kinds of its files."""
    if not relative:
        return "it is empty"
    kinds = Counter(os.path.splitext(path)[1].lower() or "no extension" for path in relative).most_common(3)
    return f"it holds {len(relative)} other files ({', '.join(f'{printable(kind)} {n}' for kind, n in kinds)})"


def one_split(name: str, files: Sequence[str]) -> None:
    """Raise UserError where files are of several splits, as shards of a folder often are, by their names or folders."""
    named = [next(filter(None, map(split_of, reversed(folders))), None) for folders in folders_below(files)]
    if len(kinds_of(splits := sorted({word for word in named if word}))) > 1:
        example = next(file for file, word in zip(files, named, strict=True) if word)
        below = os.path.relpath(example, folder) if os.path.isdir(folder := os.path.expanduser(name)) else None
        example = os.path.join(name, below) if below else example
        raise UserError(
            f"{printable(name)} holds several splits ({', '.join(splits)}): name one by a file or a pattern, "
            f"such as {printable(example)}"
        )
