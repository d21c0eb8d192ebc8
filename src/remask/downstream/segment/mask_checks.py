"""Files of pictures and masks that belong together, looked at before anything begins: names, sizes, ids."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from remask.downstream.segment.label_map import COLOUR, IGNORE, Ids, Table, listed, read_mask
from remask.errors import UserError
from remask.images.decoding import BadImage
from remask.images.orientation import Exif, Header, agreed, header_of, read_header, turned_mask
from remask.images.sources.files import describe, files_under, printable, sorted_out, splits_of
from remask.images.sources.left_out import Patterns
from remask.images.sources.splits import chosen
from remask.types import Size

SCANNED = 2000
"""Pairs looked at before anything begins, evenly spread over a larger source; all where classes are to be found."""


class Pair(NamedTuple):
    """Paths of a picture and its mask, and how the picture is shown."""

    image: str
    mask: str
    shown: str


def paired(
    typed: str, root: str, masks: str, patterns: Patterns | None = None, left_out: Counter[str] | None = None
) -> list[Pair]:
    """Picture and mask by common name, in the order of the names.

    patterns   what is excluded, of pictures and of masks
    left_out   counts the files that are neither
    """
    counts = Counter[str]() if left_out is None else left_out
    found: list[list[str]] = []
    for folder in (root, masks):
        files = files_under(folder, patterns, counts)
        found.append(sorted_out(files, counts))
        if not found[-1]:
            raise UserError(f"{printable(folder)} holds no images: {describe(files)}")
    images, drawn = found
    if splits := splits_of(images):
        train, every = chosen(list(splits))[0], ", ".join(map(printable, splits))
        raise UserError(f"{printable(typed)} holds the splits {every}: name one, as in {printable(f'{root}/{train}')}")
    by_stem: dict[str, list[str]] = {}
    for path in drawn:
        by_stem.setdefault(os.path.splitext(path)[0], []).append(path)
    if twice := [" and ".join(paths) for paths in by_stem.values() if len(paths) > 1]:
        raise UserError(f"{len(twice)} pictures of {printable(typed)} have two masks: {first_of(twice)}; remove one")
    stems = {path: os.path.splitext(path)[0] for path in images}
    if not any(stem in by_stem for stem in stems.values()):
        raise UserError(
            f"no picture has a mask of its name: {printable(typed)} holds {printable(images[0])} and "
            f"{printable(masks)} {printable(drawn[0])}; rename them alike"
        )
    check_alone([path for path, stem in stems.items() if stem not in by_stem], typed, "pictures", "mask")
    lonely = by_stem.keys() - set(stems.values())
    check_alone([path for stem, (path,) in by_stem.items() if stem in lonely], masks, "masks", "picture")
    at, masks_at = os.path.abspath(root), os.path.abspath(masks)
    return [
        Pair(os.path.join(at, path), os.path.join(masks_at, by_stem[stem][0]), os.path.join(root, path))
        for path, stem in stems.items()
    ]


def check_alone(alone: Sequence[str], where: str, what: str, missing: str) -> None:
    """Raise UserError for files without a counterpart."""
    if alone:
        raise UserError(
            f"{len(alone)} {what} of {printable(where)} have no {missing}: {first_of(alone)}; add or remove them"
        )


class PairFacts(NamedTuple):
    """What a look at a pair found; None and no ids where a file cannot be read, which is for the loader to say."""

    shown: str
    image: Size | None
    mask: Size | None
    ids: Int32[np.ndarray, "n"]
    entries: Int32[np.ndarray, "m"] | None = None
    unsure: str = ""
    """Why the mask may be one of the stored picture or of the turned one."""


def examine_pairs(
    pairs: Sequence[Pair],
    ids: Callable[[Pair], Ids] | None,
    everything: bool = False,
    exif: Exif | None = None,
) -> list[PairFacts]:
    """A look at all pairs, or at SCANNED of them.

    Raises UserError for masks of another size than their pictures, and for those that EXIF may turn or not (`agreed`).
    """

    def examine(pair: Pair) -> PairFacts:
        try:
            image, mask = _header(pair.image), _header(pair.mask)
            turn = agreed(mask.stored, image, exif)
            unsure = turn if isinstance(turn, str) and mask.stored in (image.stored, image.upright) else ""
            sizes = (mask.stored, mask.stored) if isinstance(turn, int) or unsure else (image.upright, mask.stored)
            found = ids(pair) if ids else Ids(np.empty(0, np.int32))
            return PairFacts(pair.shown, *sizes, *found, unsure)
        except (BadImage, OSError):
            return PairFacts(pair.shown, None, None, np.empty(0, np.int32))

    chosen = pairs if everything or len(pairs) <= SCANNED else pairs[:: -(-len(pairs) // SCANNED)]
    with ThreadPoolExecutor(8, "remask-masks") as pool:  # decoding lets go of the interpreter
        facts = list(pool.map(examine, chosen))
    wrong = [f"{s.shown} is {_by(s.image)}, its mask {_by(s.mask)}" for s in facts if s.image != s.mask]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(facts)} masks are of another size than their picture: {first_of(wrong)}; "
            "resize them to the nearest pixel, or name the folders that belong together"
        )
    if unsure := [f"{s.shown}: {s.unsure}" for s in facts if s.unsure]:
        raise UserError(
            f"{len(unsure)} of {len(facts)} masks may lie on pictures as they are stored or as EXIF turns them "
            f"({first_of(unsure)}): say --set data.exif=stored or data.exif=upright"
        )
    return facts


def ids_of(pair: Pair, palettes: bool = False) -> Ids:
    """The different ids of a mask; `palettes` as `read_mask` has it."""
    ids, entries = read_mask(Path(pair.mask).read_bytes(), palettes=palettes)
    return Ids(different(ids), entries)


def different(ids: Int32[np.ndarray, "H W"]) -> Int32[np.ndarray, "n"]:
    """Ascending, each once."""
    if ids.min() >= 0 and ids.max() < 1 << 16:
        return np.flatnonzero(np.bincount(ids.ravel())).astype(np.int32)  # ten times faster than sorting
    return np.unique(ids)


def _header(path: str) -> Header:
    with open(path, "rb", buffering=4096) as file:
        if (header := read_header(file)) is None:
            raise BadImage("its header cannot be read")
    return header


def turned(ids: Int32[np.ndarray, "H W"], image: bytes, exif: Exif | None) -> Int32[np.ndarray, "h w"]:
    """A mask as it lies on the decoded picture: turned with it where it is one of the pixels in the file.

    Raises BadImage where neither sizes nor `exif` tell; a mask of another size than its picture stays as it is.
    """
    header = header_of(image)
    if header is None or header.orientation == 1 or ids.shape not in (header.stored, header.upright):
        return ids
    turn = agreed((ids.shape[0], ids.shape[1]), header, exif)
    if isinstance(turn, str):
        raise BadImage(f"{turn}: say data.exif")
    return turned_mask(ids, turn)


def common_palette(facts: Sequence[PairFacts], where: str) -> dict[int, int]:
    """The colour of each number in masks with palettes.

    Raises UserError where a number has two: the files may number the classes in different order.
    """
    known, first = dict[int, int](), dict[int, str]()
    for s in facts:
        if number := other_colour(s.ids, s.entries, known):
            before, here = (listed(np.array([one], np.int32)) for one in (known[number[0]], number[1]))
            raise UserError(
                f"the masks of {where} have different palettes: {number[0]} is {before} in "
                f'{printable(first[number[0]])} and {here} in {printable(s.shown)}; with a "palette" in '
                'classes.json colours decide, with "palette": null numbers'
            )
        for number in own_colours(s.ids, s.entries):
            known.setdefault(*number)
            first.setdefault(number[0], s.shown)
    return known


def own_colours(ids: Int32[np.ndarray, "n"], entries: Int32[np.ndarray, "m"] | None) -> list[tuple[int, int]]:
    """Numbers of a mask and their colours, where its palette has them."""
    return (
        [] if entries is None else [(number, int(entries[number])) for number in ids.tolist() if number < len(entries)]
    )


def other_colour(
    ids: Int32[np.ndarray, "n"], entries: Int32[np.ndarray, "m"] | None, known: Mapping[int, int]
) -> tuple[int, int] | None:
    """The first number of a mask that has another colour than is known, and that colour."""
    pairs = own_colours(ids, entries)
    return next(((number, colour) for number, colour in pairs if known.get(number, colour) != colour), None)


def check_ids(facts: Sequence[PairFacts], known: Table, count: int, two: bool = False) -> None:
    """Raise UserError for ids that no declared class has; with `two` for two classes that are drawn as 0 and 255."""
    if two and count == 2 and {int(i) for s in facts for i in s.ids} == {0, IGNORE}:
        raise UserError(
            f"all of {len(facts)} masks hold 0 and {IGNORE} alone, and {IGNORE} is no class: for the second of the 2 "
            f'declared classes write "palette": [[0, 0, 0], [255, 255, 255]] into classes.json; if {IGNORE} is none, '
            f'"ignore_index": {IGNORE}'
        )
    wrong = [(s.shown, beyond) for s in facts if len(beyond := np.setdiff1d(s.ids, known.ids))]
    if wrong:
        first = first_of([f"{printable(shown)} has {listed(ids)}" for shown, ids in wrong])
        cure = "the id that is none (ignore_index in classes.json)"
        if any((ids >= COLOUR).any() for _, ids in wrong):
            cure = "behind their colours in the palette of classes.json the one that is none"
        raise UserError(
            f"{len(wrong)} of {len(facts)} masks hold ids beyond the {count} declared classes: {first}; "
            f"declare the classes, or {cure}"
        )


def _by(size: Size | None) -> str:
    return "unreadable" if size is None else f"{size[1]}x{size[0]}"


def first_of(offenders: Sequence[str]) -> str:
    """Three of them, for a line."""
    return "; ".join(printable(one) for one in offenders[:3]) + ("; …" if len(offenders) > 3 else "")


__all__ = [
    "SCANNED",
    "Pair",
    "PairFacts",
    "check_alone",
    "check_ids",
    "examine_pairs",
    "first_of",
    "ids_of",
    "paired",
    "turned",
]  # fmt: skip
