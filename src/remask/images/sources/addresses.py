"""What a source's address names. A wrong address is refused here, before torch is imported and any file is read.

`opening` opens what `find_source` returns, so that a wrong address gets the same message early and late.
"""

import difflib
import glob
import os
import re
from collections.abc import Sequence
from itertools import product
from typing import Literal, NamedTuple

from remask.errors import UserError
from remask.files.escaping import printable
from remask.files.paths import home_expanded
from remask.images.sources.left_out import Patterns
from remask.images.sources.lists import SUFFIXES

_ENTRY = re.compile(r"(.+\.npz):(\w+)", re.IGNORECASE | re.DOTALL)

SPLITS: dict[str, tuple[str, ...]] = {
    "digits": ("", "train", "val"),
    "crops": ("", "train", "val", "test"),
    "photos": ("",),
    "cifar10": ("", "train", "val", "test"),
    "imagenette": ("", "train", "val", "test"),
}
"""The named sets, and the splits that each has; "" where none is named."""


class Place(NamedTuple):
    """What an address names.

    kind     hub: a set of Hugging Face's · set: a named one · folder · file · entry: an array of a numpy file ·
             shards: files that a pattern matches
    path     of a folder or file
    name, split   of a named set; the name of an entry
    shards   paths of the files
    """

    kind: Literal["hub", "set", "folder", "file", "entry", "shards"]
    path: str = ""
    name: str = ""
    split: str = ""
    shards: Sequence[str] = ()


def find_source(spec: str, limit: int | None = None, patterns: Patterns | None = None) -> Place:
    """What `spec` names. Raises UserError where it names nothing, or a limit or patterns cannot be applied to it."""
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} images leaves nothing: give 1 or more")
    if patterns and not has_paths(spec):
        raise UserError(f"--exclude is for folders, lists and tars, and {printable(spec)} is none: leave it out")
    if spec.startswith("hf:"):
        return Place("hub")
    name, _, split = spec.removeprefix("set:").partition(":")
    path = home_expanded(spec)
    if name in SPLITS:
        if os.path.exists(path):
            raise UserError(
                f"{spec} is a named set and a path here: write ./{spec} for the path, set:{spec} for the set"
            )
        _check_split(name, split)
        return Place("set", name=name, split=split)
    if os.path.isdir(path):
        return Place("folder", path)
    if os.path.isfile(path):
        return Place("file", path)
    if entry := entry_of(spec):
        return Place("entry", entry[0], entry[1])
    try:
        os.stat(path)
    except PermissionError:
        raise UserError(f"no permission to look at {printable(spec)}: name a folder that may be read") from None
    except (OSError, ValueError):  # a pattern, or nothing
        pass
    shards = _expand(path)
    if not shards:
        raise UserError(_nothing_at(spec))
    return Place("shards", shards=shards)


def check_source(spec: str | None, limit: int | None = None, exclude: Sequence[str] = ()) -> None:
    """Raise UserError where a source certainly cannot be opened; None is no source and passes."""
    if spec is not None:
        find_source(spec, limit, Patterns(exclude, spec))


def check_second(spec: str | None, exclude: Sequence[str] = ()) -> None:
    """`check_source` for a second source, such as test images: `exclude` applies to it only if it has paths."""
    if spec is not None:
        check_source(spec, exclude=exclude if has_paths(spec) else ())


def has_paths(spec: str) -> bool:
    """Whether a source is a folder, list or tar, from which some images may be excluded."""
    named = spec.startswith("hf:") or spec.removeprefix("set:").partition(":")[0] in SPLITS
    path = os.path.expanduser(spec)
    if entry_of(spec):
        return False
    return not named and (not os.path.isfile(path) or path.lower().endswith((*SUFFIXES, ".tar")))


def entry_of(spec: str) -> tuple[str, str] | None:
    """ "mnist.npz:x_train" -> the file's path and the name of its array, where there is such a file and no other."""
    match = _ENTRY.fullmatch(os.path.expanduser(spec))
    return (match[1], match[2]) if match and not os.path.exists(match[0]) and os.path.isfile(match[1]) else None


def _check_split(name: str, split: str) -> None:
    if split not in SPLITS[name]:
        choices = ", ".join(f"{name}:{other}" if other else name for other in SPLITS[name])
        raise UserError(f"{name} has no split {split!r}: it can be named as {choices}")


def _expand(pattern: str) -> list[str]:
    """Files of a pattern with braces ({000..009} or {a,b}) and * ? [ ]. Every file that a brace names must exist."""
    segments = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(segment) if i % 2 else [segment] for i, segment in enumerate(segments)]
    paths: list[str] = []
    for pieces in product(*choices):
        path = "".join(pieces)
        matches = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path)))
        if not matches and len(segments) > 1:
            raise UserError(f"{printable(pattern)}: there is no {printable(path)}")
        paths += matches
    return paths


def _choices(inside: str) -> list[str]:
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = int(numbers[1]), int(numbers[2])
        return [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    return inside.split(",")


def _nothing_at(spec: str) -> str:
    name = spec.removeprefix("set:").partition(":")[0]
    line = f"there is no file, folder or named set {printable(spec)!r}"
    if near := difflib.get_close_matches(name, SPLITS, 1):
        return f"{line}: did you mean {near[0]}?"
    return f"{line} (named sets: {', '.join(SPLITS)}, hf:USER/SET)"


__all__ = ["SPLITS", "Place", "check_second", "check_source", "entry_of", "find_source", "has_paths"]
