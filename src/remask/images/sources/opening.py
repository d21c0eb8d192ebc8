"""Where images come from: one word on the command line becomes a Source of numbered images.

A folder, a list file, tar shards, parquet, a named set or a built-in; see `open_source`.
"""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from remask.errors import UserError
from remask.images import heif
from remask.images.sources.addresses import Place, find_source, has_paths
from remask.images.sources.archives import Parquet, Tar
from remask.images.sources.files import (
    EXTENSIONS,
    Files,
    describe,
    files_under,
    is_image,
    of_splits,
    only_folder,
    open_files,
    printable,
    sorted_out,
)
from remask.images.sources.labels import numbered, spelled_twice
from remask.images.sources.left_out import Patterns, listed
from remask.images.sources.lists import SUFFIXES, open_list
from remask.images.sources.named import NAMED, open_hub
from remask.images.sources.packed import Packed, is_packed
from remask.images.sources.stacks import ARRAYS, open_stack


class Source(Protocol):
    """Numbered images, encoded or as arrays. Pickles, and may be read in any order by any number of processes."""

    name: str
    """The address as the user typed it."""
    labels: list[int] | None
    """The class number of every image, 0..C-1, or nothing."""
    classes: list[str] | None
    """The names of the C classes by number, where there are labels."""
    left_out: dict[str, int]
    """Number of files and other entries that are left out, by reason."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes | np.ndarray:
        """An encoded image, or an array HW or HWC. Raises OSError where a file is gone."""
        ...

    def where(self, i: int) -> str:
        """The image's address for a person, on one line."""
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

    DIR           images below a folder, or else its .tar or .parquet shards; class folders give labels
    LIST.txt      a path per line, with or without its class; columns in .csv and .tsv, see `lists`
    X.tar, X-{000..009}.tar, X-*.tar        WebDataset shards, labels from .cls
    X.remask      what `remask data pack` wrote
    X.parquet, X-*.parquet                  rows in the Hugging Face layout
    PICTURE.jpg   a single image
    X.npz, X.npy  with an array of four axes: as many images, with labels where the archive has some; X.npz:ENTRY
                  for one of several arrays, as of mnist.npz
    digits[:train|val], crops[:train|val|test], photos     installed with remask's dependencies
    cifar10[:train|val|test], imagenette[:train|val|test], hf:USER/SET[:split]      downloaded
    set:NAME      the named set, where a file of that name exists as well

    limit: the first N images in the source's own order, which is that of the names for a folder: of class folders
    that is the first class first. labelled: fail if there are no labels. exclude: shell-style patterns of paths below
    the source that are left out, see `Patterns`. one_class: in a folder with a single folder, label all images with
    its name, as a test may need. Labels are 0..C-1 whatever numbers a source uses: those are the names of its classes.

    Raises UserError for an address that names nothing, a source that cannot be read or has no images, and labels that
    are wanted and absent.
    """
    patterns = Patterns(exclude, spec)
    source = _open(spec, find_source(spec, limit, patterns), limit, patterns)
    source.left_out = {**source.left_out, **patterns.counts}
    if labelled and (splits := getattr(source, "splits", {})):
        raise UserError(of_splits(spec, list(splits)))
    if one_class and source.labels is None and isinstance(source, Files):
        only_folder(source)
    if source.labels is not None and source.classes is None:  # of a list, a tar, an older packed set
        source.labels, source.classes = numbered(source.labels)
    _remark_on_labels(source, labelled)
    return source


def _remark_on_labels(source: Any, labelled: bool) -> None:
    """Add remarks on labels that are not used, and on class numbers that are written in two ways. Where labels are
    wanted, raise UserError for such numbers and for a source without labels.
    """
    name, why, remarks = printable(source.name), getattr(source, "unlabelled", ""), [*getattr(source, "remarks", [])]
    if labelled and source.labels is None:
        if why:
            raise UserError(
                f"{name} has no labels to use: {why}; give every image a class (by class folders, .cls members, a "
                "label column or in the list), or leave out those without"
            )
        raise UserError(
            f"{name} has no labels: they come from class folders, .cls members, a label column "
            "or a class number after each path of a list"
        )
    if why:
        remarks.append(f"{name}: {why}, so that it is used without labels")
    if twice := spelled_twice(source.classes or []):
        line = f"{name} has the classes {twice[0]!r} and {twice[1]!r}, which are one number"
        if labelled:
            raise UserError(f"{line}: write it alike where one class is meant, or give the other a name")
        remarks.append(f"{line}: they are taken for two")
    source.remarks = remarks


def open_second(
    spec: str,
    *,
    limit: int | None = None,
    labelled: bool = False,
    exclude: Sequence[str] = (),
    one_class: bool = False,
) -> Source:
    """`open_source` of a second source, such as test images: `exclude` applies to it only if it has paths."""
    patterns = exclude if has_paths(spec) else ()
    return open_source(spec, limit=limit, labelled=labelled, exclude=patterns, one_class=one_class)


def _open(spec: str, place: Place, limit: int | None, patterns: Patterns) -> Source:
    if place.kind == "hub":
        return open_hub(spec, limit)
    if place.kind == "set":
        return NAMED[place.name](spec, place.split, limit)
    if place.kind == "entry":
        stack = open_stack(spec, place.path, limit, place.name)
        if stack is not None:
            return stack
    if place.kind == "folder":
        return _open_folder(spec, place.path, limit, patterns)
    if place.kind == "file":
        return _open_file(spec, place.path, limit, patterns)
    return _open_shards(spec, list(place.shards), limit, patterns)


def _open_folder(spec: str, path: str, limit: int | None, patterns: Patterns) -> Source:
    left_out = Counter[str]()
    paths = files_under(path, patterns, left_out)
    others = Counter[str]()
    images = sorted_out(paths, others)
    if images:
        return open_files(spec, path, images, limit, left_out + others)
    for kind in (".tar", ".parquet"):
        if of_kind := [name for name in paths if name.lower().endswith(kind)]:
            source = _open_shards(spec, [os.path.join(path, name) for name in of_kind], limit, patterns)
            shards = Counter({f"{kind} files": len(of_kind)})
            source.left_out = left_out + others - shards + Counter(source.left_out)
            return source
    if (heic := others[heif.REASON]) and heic == len(paths):
        raise UserError(f"{printable(spec)} holds {heic} {heif.REASON}")
    skipped = f", without {listed(excluded)}" if (excluded := left_out + patterns.counts) else ""
    raise UserError(f"{printable(spec)} holds no images: {describe(paths)}{skipped}; looked for {' '.join(EXTENSIONS)}")


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
    if is_image(path):
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
