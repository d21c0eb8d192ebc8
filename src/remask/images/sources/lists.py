"""Lists of images in text files: a path a line, perhaps with its class, or columns with a line of headings."""

import contextlib
import csv
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from remask.errors import UserError
from remask.files.bounds import MOST_LIST
from remask.files.text import read_text
from remask.images import heif
from remask.images.sources.columns import Columns
from remask.images.sources.files import EXTENSIONS, Files, printable
from remask.images.sources.labels import TextLabels, integer_of, of_texts, says_none
from remask.images.sources.left_out import NO_LABEL, Patterns
from remask.images.sources.splits import are_splits

SUFFIXES = (".txt", ".csv", ".tsv", ".lst")
PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "picture")
CLASSES = (
    "label",
    "class",
    "class_name",
    "classname",
    "category",
    "target",
    "cls",
    "label_name",
    "class_id",
    "label_id",
)
SPLITS = ("split", "subset", "set", "partition")
"""Headings, in any case, of columns that are read; others are ignored."""

LOOKED_AT = 1000
"""Lines from which the separator of the columns is detected."""

_EXTENSION = rf"(?:{'|'.join(re.escape(end) for end in (*EXTENSIONS, *heif.EXTENSIONS))})"
_IMAGE_NAME = re.compile(rf".*{_EXTENSION}", re.IGNORECASE)
_BLANK = re.compile(rf"(.*{_EXTENSION})[ \t]+(\S.*)", re.IGNORECASE)
_LAST = re.compile(r"(.*\S)[ \t]+(\S+)")
_QUOTED = re.compile(r"""(["'])((?:(?!\1).)+)\1(?:[ \t]+(["']?)(.+)\3)?""")
_ADDRESS = re.compile(r"\w+://")
_FIRST = re.compile(r"(\S+)[ \t]+(\S.*)")
_ODD_BLANK = re.compile(r"[^\S \t\n]|[\u200b\u2060\ufeff]")
"""Blanks that look like plain ones, such as the no-break space, and characters without a width."""
_ANY_BLANK = re.compile(rf"[ \t]|{_ODD_BLANK.pattern}")
_ODD_ENDS = "".join(map(chr, (9, 11, 12, 32, 0xA0, *range(0x2000, 0x200C), 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF)))


class Row(NamedTuple):
    """An image of a list, the text of its class and of its split, and the number of its line."""

    path: str
    label: str | None
    split: str | None
    line: int


def open_list(name: str, path: str, limit: int | None, patterns: Patterns | None = None) -> Files:
    """Images of a text file, relative to it: a path a line and perhaps its class, or columns with headings.

    The class is a number or a name and follows a tab, a comma, a semicolon or a blank; paths and classes may be quoted.
    Lines that begin with # are comments: an image of such a name is written ./#name. Blanks around a path, blank lines
    and the line ends of any system mean nothing. Raises UserError with the number of the first line that is wrong.
    """
    rows, columns = _read(path, printable(name))
    selected = [row for row in rows if not (patterns and patterns.exclude(os.path.normpath(row.path).lstrip("/")))]
    splits = Counter(row.split for row in selected if row.split)
    rows = selected[:limit]
    if not rows:
        raise UserError(f"{printable(name)} names no images: it needs one path per line")
    texts = [row.label for row in rows if row.label is not None]
    if texts and len(texts) < len(rows):
        first = next(row for row in rows if row.label is None)
        raise UserError(
            f"{printable(name)}, line {first.line} gives no class for {printable(first.path)}, and others have one: "
            "give all or none"
        )
    parsed = of_texts(texts) if texts else TextLabels()
    usable = sum(not says_none(text) for text in texts)
    left_out = {NO_LABEL: usable} if 0 < usable < len(texts) else {}
    classes = None if parsed.classes is None else [printable(text) for text in parsed.classes]
    folder = os.path.dirname(os.path.abspath(path))
    paths = [os.path.join(folder, row.path) for row in rows]
    named = {printable(split): count for split, count in sorted(splits.items())}
    mixed = named if len(named) > 1 and are_splits(named) else {}
    shown = [row.path for row in rows]
    return Files(name, paths, shown, parsed.labels, classes, left_out, mixed, parsed.why, columns.remarks())


def read_rows(path: str, where: str) -> list[Row]:
    """The rows of a list. Raises UserError with the number of the first line that cannot be read."""
    return _read(path, where)[0]


def _read(path: str, where: str) -> tuple[list[Row], Columns]:
    """The rows of a list, and its columns where a line names them."""
    text, files = _text(path, where), _ListedFiles(os.path.dirname(os.path.abspath(path)))
    lines = [(number, line.strip(" \t\ufeff")) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    separator = _separator([line for _, line in lines], files)
    headings = _headings(lines[0][1], separator or ",", files) if lines else None
    rows, columns = list[Row](), headings if separator else None
    for number, line in lines[1 if headings else 0 :]:
        at = f"{where}, line {number}"
        image, label, split = (
            _by_headings(line, separator, columns, at) if columns else _row(line, separator, files, at)
        )
        if _ADDRESS.match(image):
            raise UserError(f"{at} is an address, {printable(image)}: pictures have to lie in files")
        label = None if label is None else label.strip(_ODD_ENDS)
        rows.append(Row(files.resolved(image, at), label, split, number))
    _check_columns(rows[:LOOKED_AT], files, where)
    return rows, _columns(lines[0][1], separator, columns) if columns else Columns([], [])


def _text(path: str, where: str) -> str:
    try:
        return read_text(path, where, names=True, most=MOST_LIST)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from None


def _columns(line: str, separator: str, columns: dict[str, int]) -> Columns:
    """The headings that are read, and the others."""
    cells = _cells(line, separator)
    places = sorted(columns.values())
    return Columns([cells[i] for i in places], [cell or "(no name)" for i, cell in enumerate(cells) if i not in places])


def _check_columns(rows: Sequence[Row], files: "_ListedFiles", where: str) -> None:
    """Raise UserError where paths do not exist and their lines show why: the class stands before the path, or an
    unusual blank separates the columns.
    """
    missing = [row for row in rows if _ANY_BLANK.search(row.path) and not files.has(row.path)]
    for row in missing:
        for blank in _ODD_BLANK.finditer(row.path):
            before, behind = row.path[: blank.start()].strip(_ODD_ENDS), row.path[blank.end() :].strip(_ODD_ENDS)
            if (before and (_IMAGE_NAME.fullmatch(before) or files.has(before))) or (behind and files.has(behind)):
                name = f"U+{ord(blank[0]):04X} ({unicodedata.name(blank[0], 'a control character').lower()})"
                raise UserError(
                    f"{where}, line {row.line}: {name} stands beside the path {printable(row.path)}: "
                    "put a tab, a comma or a plain blank between the columns"
                )
    firsts = [
        (row, match[1], match[2]) for row in missing if row.label is None and (match := _FIRST.fullmatch(row.path))
    ]
    numbered = len(firsts) == len(rows) and all(integer_of(first) is not None for _, first, _ in firsts)
    for row, first, rest in firsts:
        if files.has(rest) or (numbered and _IMAGE_NAME.fullmatch(rest)):
            raise UserError(
                f"{where}, line {row.line}: there is no {printable(row.path)}: the second column names the files; the "
                f"first must, as in {printable(rest)} {printable(first)}"
            )


_Cells = tuple[str, str | None, str | None]
"""The path, the class and the split of a line."""


def _separator(lines: Sequence[str], files: "_ListedFiles") -> str:
    """The separator of the columns: a tab, a comma or a semicolon; "" for blanks, or where names contain the others."""
    for separator in "\t,;":
        having = [line for line in lines[:LOOKED_AT] if separator in line]
        quoted = separator != "\t" and any(map(_QUOTED.fullmatch, having))
        existing = [path for line in having if files.has(path := _by_blanks(line, files)[0])]
        if not having or quoted or any(separator in path for path in existing):
            continue
        if len(having) == len(lines[:LOOKED_AT]) or _headings(lines[0], separator, files):
            return separator
        blanks = separator == "\t" and existing  # in some lines a tab, in others a blank before the class
        if not blanks and any(_IMAGE_NAME.fullmatch(_cells(line, separator)[0]) for line in having):
            return separator
    return ""


def _cells(line: str, separator: str) -> list[str]:
    """The columns of a line, without quotes and the blanks around them."""
    try:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [""])
    except csv.Error:
        cells = line.split(separator)
    cells = [cell.strip(" \t") for cell in cells]
    return [cell[1:-1] if len(cell) > 2 and cell[0] == cell[-1] == "'" else cell for cell in cells]


def _headings(line: str, separator: str, files: "_ListedFiles") -> dict[str, int] | None:
    """Column numbers {"path": …, "label": …, "split": …} by the headings in the first line; None if it has none."""
    cells = [cell.lower() for cell in _cells(line, separator)]
    path = next((cells.index(word) for word in PATHS if word in cells), None)
    if path is None or files.has(_cells(line, separator)[path]):
        return None
    columns = {"path": path}
    for key, words in (("label", CLASSES), ("split", SPLITS)):
        if (at := next((cells.index(word) for word in words if word in cells), None)) is not None:
            columns[key] = at
    return columns


def _by_headings(line: str, separator: str, headings: dict[str, int], at: str) -> _Cells:
    cells = _cells(line, separator)
    if len(cells) <= max(headings.values()) or not cells[headings["path"]]:
        count, columns = len(cells), "column" if len(cells) == 1 else "columns"
        raise UserError(f"{at} has {count} {columns} and names no picture, or fewer than the headings: repair the line")
    label = cells[headings["label"]] if "label" in headings else None  # an empty one says that there is none
    return cells[headings["path"]], label, cells[headings["split"]] or None if "split" in headings else None


def _row(line: str, separator: str, files: "_ListedFiles", at: str) -> _Cells:
    """Path and class of a line without headings, in either order: the path is the column that looks like one."""
    if not separator:
        return *_by_blanks(line, files), None
    columns = _cells(line, separator)
    cells = [cell for cell in columns if cell]
    if len(columns) == 2 and len(cells) == 1:  # an empty column says that there is no class
        return cells[0], "", None
    paths = [cell for cell in cells if _IMAGE_NAME.fullmatch(cell)] or [cell for cell in cells if files.has(cell)]
    if len(cells) == 3 and paths == cells[2:] and cells[0].isdigit():  # MXNet: number of the row, class, path
        cells = [re.sub(r"\.0+$", "", cells[1]), cells[2]]
    if not 1 <= len(cells) <= 2:
        raise UserError(
            f"{at} has {len(cells)} columns: say which is which in a first line, as path{separator}label".expandtabs(1)
        )
    path = paths[0] if paths else cells[0]
    return path, next((cell for cell in cells if cell is not path), None), None


def _by_blanks(line: str, files: "_ListedFiles") -> tuple[str, str | None]:
    """A path, quoted or not, and perhaps a class after a blank; for names without extension, existing files decide."""
    if line[0] in "\"'" and (quoted := _QUOTED.fullmatch(line)) and not files.has(line):
        return quoted[2], quoted[4]
    if _IMAGE_NAME.fullmatch(line):
        return line, None
    if named := _BLANK.fullmatch(line):
        return named[1], named[2].strip("\"'")
    last = _LAST.fullmatch(line)
    if not last or files.has(line):
        return line, None
    other = integer_of(last[2]) is not None and re.search(r"\.\w+$", last[1])  # an extension that is not known here
    return (last[1], last[2].strip("\"'")) if other or files.has(last[1]) else (line, None)


class _ListedFiles:
    """The files that paths of a list may mean: relative to the list, with ~, with \\ for /, or without extension."""

    def __init__(self, folder: str) -> None:
        self._folder, self._stems = folder, dict[str, dict[str, list[str]]]()

    def has(self, path: str) -> bool:
        return self._is_file(path) or (not _IMAGE_NAME.fullmatch(path) and bool(self._complete(path)))

    def resolved(self, path: str, at: str) -> str:
        """The path to read, with ~, \\ and a missing extension resolved. Raises UserError for several images."""
        if path.startswith("~") and not self._is_file(path):
            path = os.path.expanduser(path)
        if "\\" in path and not self._is_file(path):
            path = path.replace("\\", "/")
        if _IMAGE_NAME.fullmatch(path) or self._is_file(path) or not (complete := self._complete(path)):
            return path
        if len(complete) > 1:
            raise UserError(f"{at}: {printable(path)} may be {' or '.join(map(printable, complete))}: write which")
        return complete[0]

    def _is_file(self, path: str) -> bool:
        return os.path.isfile(os.path.join(self._folder, path))

    def _complete(self, path: str) -> list[str]:
        """The images whose path this is, but for their extension."""
        folder, base = os.path.split(os.path.expanduser(path.replace("\\", "/")))
        if folder not in self._stems:
            stems = self._stems[folder] = dict[str, list[str]]()
            with contextlib.suppress(OSError):
                for name in sorted(os.listdir(os.path.join(self._folder, folder))):
                    if _IMAGE_NAME.fullmatch(name):
                        stems.setdefault(os.path.splitext(name)[0], []).append(name)
        return [os.path.join(folder, name) for name in self._stems[folder].get(base, [])]


__all__ = ["SUFFIXES", "Row", "open_list", "read_rows"]
