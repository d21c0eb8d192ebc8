"""Where pictures come from: one word on the command line becomes a Source of numbered pictures.

A folder, a list file, tar shards, parquet, a named set or a built-in; see `open_source`.
"""

import difflib
import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Protocol

import numpy as np

from remask.errors import UserError
from remask.images import heif
from remask.images.sources.archives import Parquet, Tar
from remask.images.sources.files import (
    EXTENSIONS,
    Files,
    describe,
    files_under,
    is_picture,
    of_splits,
    only_folder,
    open_files,
    printable,
    sorted_out,
)
from remask.images.sources.labels import numbered
from remask.images.sources.left_out import Patterns, listed
from remask.images.sources.lists import SUFFIXES, open_list
from remask.images.sources.named import NAMED, open_hub
from remask.images.sources.packed import Packed, is_packed
from remask.images.sources.stacks import ARRAYS, open_stack


class Source(Protocol):
    """Numbered pictures, encoded or as arrays. Pickles, and may be read in any order by any number of processes."""

    name: str
    """What the user typed."""
    labels: list[int] | None
    """The class number of every picture, 0..C-1, or nothing."""
    classes: list[str] | None
    """The names of the C classes by number, where there are labels."""
    left_out: dict[str, int]
    """How many files and the like it does not take, by reason."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes | np.ndarray:
        """An encoded picture, or an array HW or HWC. Raises OSError where a file is gone."""
        ...

    def where(self, i: int) -> str:
        """The picture's address for a person, on one line."""
        ...


def open_source(
    spec: str,
    *,
    limit: int | None = None,
    labelled: bool = False,
    exclude: Sequence[str] = (),
    one_class: bool = False,
) -> Source:
    """Open what `spec` names; nothing is written except the download of a named set.

    DIR           pictures below a folder, or else its .tar or .parquet shards; class folders give labels
    LIST.txt      a path per line, with or without its class; columns in .csv and .tsv, see `lists`
    X.tar, X-{000..009}.tar, X-*.tar        WebDataset shards, labels from .cls
    X.remask      what `remask data pack` wrote
    X.parquet, X-*.parquet                  rows in the Hugging Face layout
    PICTURE.jpg   a single picture
    X.npz, X.npy  with an array of four axes: as many pictures, with labels where the archive has some
    digits[:train|val], crops[:train|val|test], photos     installed with remask's dependencies
    cifar10[:train|val|test], imagenette[:train|val|test], hf:USER/SET[:split]      downloaded
    set:NAME      the named set, where a file of that name exists as well

    limit: the first N pictures in the source's own order, which is that of the names for a folder: of class folders
    that is the first class first. labelled: fail if there are no labels. exclude: shell-style patterns of paths below
    the source that are left out, see `Patterns`. one_class: a folder with a single folder in it is one of its class, as
    a test may be. Labels are 0..C-1 whatever numbers a source uses: those are the names of its classes. Raises
    UserError.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} images leaves nothing: give 1 or more")
    patterns = Patterns(exclude, spec)
    source = _open(spec, limit, patterns)
    source.left_out = {**source.left_out, **patterns.counts}
    if labelled and (splits := getattr(source, "splits", {})):
        raise UserError(of_splits(spec, list(splits)))
    if one_class and source.labels is None and isinstance(source, Files):
        only_folder(source)
    if source.labels is not None and source.classes is None:  # of a list, a tar, an older packed set
        source.labels, source.classes = numbered(source.labels)
    if labelled and source.labels is None:
        raise UserError(
            f"{printable(spec)} has no labels: they come from class folders, .cls members, a label column "
            "or a class number after each path of a list"
        )
    return source


def has_paths(spec: str) -> bool:
    """Whether a source is a folder, list or tar, from which some pictures may be excluded."""
    named = spec.startswith("hf:") or spec.removeprefix("set:").partition(":")[0] in NAMED
    path = os.path.expanduser(spec)
    return not named and (not os.path.isfile(path) or path.lower().endswith((*SUFFIXES, ".tar")))


def open_second(
    spec: str,
    *,
    limit: int | None = None,
    labelled: bool = False,
    exclude: Sequence[str] = (),
    one_class: bool = False,
) -> Source:
    """`open_source` of test pictures and the like, for which patterns are given that were meant for others first."""
    patterns = exclude if has_paths(spec) else ()
    return open_source(spec, limit=limit, labelled=labelled, exclude=patterns, one_class=one_class)


def _open(spec: str, limit: int | None, patterns: Patterns) -> Source:
    if patterns and not has_paths(spec):
        raise UserError(f"--exclude is for folders, lists and tars, and {printable(spec)} is none: leave it out")
    if spec.startswith("hf:"):
        return open_hub(spec, limit)
    name, _, split = spec.removeprefix("set:").partition(":")
    path = os.path.expanduser(spec)
    if name in NAMED:
        if os.path.exists(path):
            raise UserError(
                f"{spec} is a named set and a path here: write ./{spec} for the path, set:{spec} for the set"
            )
        return NAMED[name](spec, split, limit)
    if os.path.isdir(path):
        return _open_folder(spec, path, limit, patterns)
    if os.path.isfile(path):
        return _open_file(spec, path, limit, patterns)
    try:
        os.stat(path)
    except PermissionError:
        raise UserError(f"no permission to look at {printable(spec)}: name a folder that may be read") from None
    except (OSError, ValueError):  # a pattern, or nothing
        pass
    shards = _expand(path)
    if not shards:
        raise UserError(_nothing_at(spec))
    return _open_shards(spec, shards, limit, patterns)


def _open_folder(spec: str, path: str, limit: int | None, patterns: Patterns) -> Source:
    left_out = Counter[str]()
    found = files_under(path, patterns, left_out)
    others = Counter[str]()
    pictures = sorted_out(found, others)
    if pictures:
        return open_files(spec, path, pictures, limit, left_out + others)
    for kind in (".tar", ".parquet"):
        if of_kind := [name for name in found if name.lower().endswith(kind)]:
            source = _open_shards(spec, [os.path.join(path, name) for name in of_kind], limit, patterns)
            shards = Counter({f"{kind} files": len(of_kind)})
            source.left_out = left_out + others - shards + Counter(source.left_out)
            return source
    if (phone := others[heif.REASON]) and phone == len(found):
        raise UserError(f"{printable(spec)} holds {phone} {heif.REASON}")
    said = f", without {listed(gone)}" if (gone := left_out + patterns.counts) else ""
    raise UserError(f"{printable(spec)} holds no images: {describe(found)}{said}; looked for {' '.join(EXTENSIONS)}")


def _open_file(spec: str, path: str, limit: int | None, patterns: Patterns) -> Source:
    if path.lower().endswith(SUFFIXES):
        return open_list(spec, path, limit, patterns)
    if path.lower().endswith(".tar"):
        return _open_shards(spec, [path], limit, patterns)
    if path.lower().endswith(".parquet"):
        return _open_shards(spec, [path], limit, patterns)
    if is_packed(path):
        return Packed(spec, path, limit)
    if path.lower().endswith(ARRAYS) and (stack := open_stack(spec, path, limit)) is not None:
        return stack
    if is_picture(path):
        return Files(spec, [os.path.abspath(path)], [spec])
    if heif.is_heif(path):
        raise UserError(f"{printable(spec)} is a HEIC picture, which needs pip install 'remask[heic]'")
    raise UserError(
        f"{printable(spec)} is no image, .txt list, .tar, .parquet or .remask (a compressed tar must be unpacked; "
        ".csv, .tsv and .lst are lists too)"
    )


def _open_shards(spec: str, shards: list[str], limit: int | None, patterns: Patterns) -> Source:
    kinds = {os.path.splitext(shard)[1].lower() for shard in shards}
    if kinds == {".tar"}:
        return Tar(spec, shards, limit, patterns)
    if kinds == {".parquet"}:
        return Parquet(spec, shards, limit)
    raise UserError(f"{printable(spec)} matches {', '.join(sorted(kinds))}: a pattern names .tar or .parquet shards")


def _expand(pattern: str) -> list[str]:
    """Files of a pattern with braces ({000..009} or {a,b}) and * ? [ ]. Every shard a brace names must be there."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(part) if odd % 2 else [part] for odd, part in enumerate(parts)]
    found: list[str] = []
    for pieces in product(*choices):
        path = "".join(pieces)
        matches = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path)))
        if not matches and len(parts) > 1:
            raise UserError(f"{printable(pattern)}: there is no {printable(path)}")
        found += matches
    return found


def _choices(inside: str) -> list[str]:
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = int(numbers[1]), int(numbers[2])
        return [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    return inside.split(",")


def _nothing_at(spec: str) -> str:
    name = spec.removeprefix("set:").partition(":")[0]
    line = f"there is no file, folder or named set {printable(spec)!r}"
    if near := difflib.get_close_matches(name, NAMED, 1):
        return f"{line}: did you mean {near[0]}?"
    return f"{line} (named sets: {', '.join(NAMED)}, hf:USER/SET)"
