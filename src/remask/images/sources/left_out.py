"""What a source leaves out, by the user's patterns or because it is no image: each reason is counted and reported."""

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from remask.files.escaping import printable

HIDDEN_FILES, HIDDEN_FOLDERS = "hidden files", "hidden folders"
BROKEN_LINKS = "links to nothing"
REPEATED = "folders that a second link names"
SPECIAL = "special files, such as pipes"
UNNAMED = "pictures that the annotations do not name"
NO_LABEL = "class labels, which not every picture has"

SHOWN = 6
"""Reasons that a message names one by one."""


class Patterns:
    """Shell-style patterns of `--exclude`, matched against paths that are relative to a source's root.

    A pattern with a slash is matched against the path from the root on, and its * stands for slashes too; one without
    is matched against every name in the path. All that lies in a folder that a pattern names is excluded with it.
    `root` is the source as the user typed it: patterns that begin with it, or with its full path, are cut there.
    """

    def __init__(self, patterns: Sequence[str] = (), root: str = "") -> None:
        self.patterns = {pattern: relative_pattern(pattern, root) for pattern in patterns}
        self.counts = Counter({f"excluded by {printable(pattern)}": 0 for pattern in self.patterns})

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def exclude(self, path: str) -> bool:
        """Whether the file or folder of this relative path is excluded; if so, it is counted."""
        for pattern, wanted in self.patterns.items():
            if any(_matches(step, wanted) for step in _steps(path)):
                self.counts[f"excluded by {printable(pattern)}"] += 1
                return True
        return False


def relative_pattern(pattern: str, root: str) -> str:
    """The pattern to match against paths relative to `root`."""
    short = os.path.normpath(os.path.expanduser(pattern)) if "/" in pattern else pattern
    home = os.path.expanduser(root)
    for begin in (os.path.abspath(home), os.path.normpath(home)) if root else ():
        if short.startswith(begin.rstrip("/") + "/"):
            return short[len(begin.rstrip("/")) + 1 :]
    return short


def _steps(path: str) -> Iterator[str]:
    """ "a/b/c" -> "a", "a/b", "a/b/c"."""
    names = [name for name in path.split("/") if name not in ("", ".")]
    for count in range(1, len(names) + 1):
        yield "/".join(names[:count])


def _matches(path: str, pattern: str) -> bool:
    short = path if "/" in pattern else path.rpartition("/")[2]
    return short == pattern or fnmatch.fnmatchcase(short, pattern)


def kind_of(path: str) -> str:
    """The reason why a file that is no image is left out: its extension, or that it has none."""
    extension = os.path.splitext(path)[1].lower()
    return f"{extension} files" if extension.isprintable() and 1 < len(extension) <= 12 else "files without extension"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a hidden one, by its own name."""
    return name.startswith(".") or name == "__MACOSX"


def listed(left_out: Mapping[str, int]) -> str:
    """ "3 .json files, 1 hidden file": the most frequent reasons first; empty where nothing is left out."""
    order = sorted(left_out.items(), key=lambda item: (not item[0].startswith(("excluded", "HEIC")), -item[1]))
    shown = [f"{count:,} {_of_one(reason) if count == 1 else reason}" for reason, count in order]
    if rest := sum(count for _, count in order[SHOWN:]):
        shown = [*shown[:SHOWN], f"{rest:,} others"]
    return ", ".join(shown)


def _of_one(reason: str) -> str:
    """ "hidden files" -> "hidden file"."""
    return re.sub(r"(file|picture|link|folder|member|mask|label|row|page)s\b", r"\1", reason, count=1)


def further(columns: Sequence[str], rows: int) -> dict[str, int]:
    """The images left out of a table because they are in other columns than the one that is read: {reason: rows}."""
    return {f"pictures of the column {column}": rows for column in columns}


def notes(source: Any) -> list[str]:
    """Lines about a source for the start of a run: what it leaves out, the splits that are taken together, remarks."""
    lines = []
    if skipped := listed(getattr(source, "left_out", {})):
        lines.append(f"{printable(source.name)}: left out {skipped}")
    if splits := getattr(source, "splits", None):
        named = ", ".join(f"{printable(name)} {count:,}" for name, count in splits.items())
        lines.append(f"{printable(source.name)}: all of its splits are taken ({named})")
    return [*lines, *getattr(source, "remarks", [])]


__all__ = [
    "BROKEN_LINKS", "HIDDEN_FILES", "HIDDEN_FOLDERS", "NO_LABEL", "REPEATED", "SPECIAL", "UNNAMED", "Patterns",
    "further", "is_hidden", "kind_of", "listed", "notes", "relative_pattern",
]  # fmt: skip
