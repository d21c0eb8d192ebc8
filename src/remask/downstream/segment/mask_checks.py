"""Checks of image and mask files before the training: matching names, sizes, ids."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from remask.downstream.segment.label_map import COLOUR, IGNORE, Ids, Table, listed, read_mask
from remask.errors import UserError
from remask.files.bounds import open_regular, read_file
from remask.images.decoding import BadImage
from remask.images.orientation import Exif, Header, agreed, header_of, read_header, turned_mask
from remask.images.sources.files import describe, files_under, printable, sorted_out, splits_of
from remask.images.sources.left_out import Patterns
from remask.images.sources.splits import chosen
from remask.types import Size

SCANNED = 2000
"""Maximum number of pairs that are checked, evenly spread; all pairs if classes are undeclared."""


class Pair(NamedTuple):
    """Paths of an image and its mask, and the image's path as messages show it."""

    image: str
    mask: str
    shown: str


def paired(
    typed: str, root: str, masks: str, patterns: Patterns | None = None, left_out: Counter[str] | None = None
) -> list[Pair]:
    """Pairs of image and mask with a common name, sorted by name.

    typed      the folder of images as the user wrote it, for errors     root, masks   folders of images and masks
    patterns   of paths that are excluded, of images and masks
    left_out   counts excluded files and those that are no images
    Raises UserError for a folder without images or with several splits, and for files without a counterpart.
    """
    counts = Counter[str]() if left_out is None else left_out
    listings: list[list[str]] = []
    for folder in (root, masks):
        files = files_under(folder, patterns, counts)
        listings.append(sorted_out(files, counts))
        if not listings[-1]:
            raise UserError(f"{printable(folder)} holds no images: {describe(files)}")
    images, mask_files = listings
    if splits := splits_of(images):
        train, every = chosen(list(splits))[0], ", ".join(map(printable, splits))
        raise UserError(f"{printable(typed)} holds the splits {every}: name one, as in {printable(f'{root}/{train}')}")
    by_stem: dict[str, list[str]] = {}
    for path in mask_files:
        by_stem.setdefault(os.path.splitext(path)[0], []).append(path)
    if duplicates := [" and ".join(paths) for paths in by_stem.values() if len(paths) > 1]:
        raise UserError(
            f"{len(duplicates)} pictures of {printable(typed)} have two masks: {first_of(duplicates)}; remove one"
        )
    stems = {path: os.path.splitext(path)[0] for path in images}
    if not any(stem in by_stem for stem in stems.values()):
        raise UserError(
            f"no picture has a mask of its name: {printable(typed)} holds {printable(images[0])} and "
            f"{printable(masks)} {printable(mask_files[0])}; rename them alike"
        )
    check_alone([path for path, stem in stems.items() if stem not in by_stem], typed, "pictures", "mask")
    unmatched = by_stem.keys() - set(stems.values())
    check_alone([path for stem, (path,) in by_stem.items() if stem in unmatched], masks, "masks", "picture")
    root_path, masks_path = os.path.abspath(root), os.path.abspath(masks)
    return [
        Pair(os.path.join(root_path, path), os.path.join(masks_path, by_stem[stem][0]), os.path.join(root, path))
        for path, stem in stems.items()
    ]


def check_alone(files: Sequence[str], where: str, what: str, missing: str) -> None:
    """Raise UserError for files without a counterpart."""
    if files:
        raise UserError(
            f"{len(files)} {what} of {printable(where)} have no {missing}: {first_of(files)}; add or remove them"
        )


class PairFacts(NamedTuple):
    """Sizes (h, w) and ids of a pair; None and no ids if a file is unreadable, which the loader reports."""

    shown: str
    image: Size | None
    mask: Size | None
    ids: Int32[np.ndarray, "n"]
    entries: Int32[np.ndarray, "m"] | None = None
    unsure: str = ""
    """Why it is unknown whether the mask belongs to the stored image or the one turned by EXIF; else empty."""


def examine_pairs(
    pairs: Sequence[Pair],
    ids: Callable[[Pair], Ids] | None,
    everything: bool = False,
    exif: Exif | None = None,
) -> list[PairFacts]:
    """The facts of all pairs, or of SCANNED of them.

    ids          reads the ids of a pair's mask; None reads sizes only
    everything   examine all pairs
    Raises UserError for masks of another size than their images, and if EXIF may turn a mask or not (`agreed`).
    """

    def examine(pair: Pair) -> PairFacts:
        try:
            image, mask = _header(pair.image), _header(pair.mask)
            turn = agreed(mask.stored, image, exif)
            unsure = turn if isinstance(turn, str) and mask.stored in (image.stored, image.upright) else ""
            sizes = (mask.stored, mask.stored) if isinstance(turn, int) or unsure else (image.upright, mask.stored)
            mask_ids = ids(pair) if ids else Ids(np.empty(0, np.int32))
            return PairFacts(pair.shown, *sizes, *mask_ids, unsure)
        except (BadImage, OSError):
            return PairFacts(pair.shown, None, None, np.empty(0, np.int32))

    chosen = pairs if everything or len(pairs) <= SCANNED else pairs[:: -(-len(pairs) // SCANNED)]
    with ThreadPoolExecutor(8, "remask-masks") as pool:  # decoding releases the GIL
        facts = list(pool.map(examine, chosen))
    misfits = [f"{s.shown} is {_size_text(s.image)}, its mask {_size_text(s.mask)}" for s in facts if s.image != s.mask]
    if misfits:
        raise UserError(
            f"{len(misfits)} of {len(facts)} masks are of another size than their picture: {first_of(misfits)}; "
            "resize them to the nearest pixel, or name the folders that belong together"
        )
    if unsure := [f"{s.shown}: {s.unsure}" for s in facts if s.unsure]:
        raise UserError(
            f"{len(unsure)} of {len(facts)} masks may lie on pictures as they are stored or as EXIF turns them "
            f"({first_of(unsure)}): say --set data.exif=stored or data.exif=upright"
        )
    return facts


def ids_of(pair: Pair, palettes: bool = False) -> Ids:
    """The distinct ids of a pair's mask; palettes: see `read_mask`."""
    ids, entries = read_mask(read_file(pair.mask), palettes=palettes)
    return Ids(different(ids), entries)


def different(ids: Int32[np.ndarray, "H W"]) -> Int32[np.ndarray, "n"]:
    """The distinct ids, ascending."""
    if ids.min() >= 0 and ids.max() < 1 << 16:
        return np.flatnonzero(np.bincount(ids.ravel())).astype(np.int32)  # ten times faster than sorting
    return np.unique(ids)


def _header(path: str) -> Header:
    with open_regular(path, buffering=4096) as file:
        if (header := read_header(file)) is None:
            raise BadImage("its header cannot be read")
    return header


def turned(ids: Int32[np.ndarray, "H W"], image: bytes, exif: Exif | None) -> Int32[np.ndarray, "h w"]:
    """The mask that fits the decoded image: turned by the image's EXIF if it belongs to the stored pixels.

    image   encoded, for its header
    Raises BadImage if neither sizes nor `exif` decide; a mask of another size than its image is returned unchanged.
    """
    header = header_of(image)
    if header is None or header.orientation == 1 or ids.shape not in (header.stored, header.upright):
        return ids
    turn = agreed((ids.shape[0], ids.shape[1]), header, exif)
    if isinstance(turn, str):
        raise BadImage(f"{turn}: say data.exif")
    return turned_mask(ids, turn)


def common_palette(facts: Sequence[PairFacts], where: str) -> dict[int, int]:
    """{number: colour id} of masks with palettes.

    Raises UserError if a number has two colours: the files may number the classes in different orders.
    """
    known, first = dict[int, int](), dict[int, str]()
    for s in facts:
        if number := other_colour(s.ids, s.entries, known):
            before, after = (listed(np.array([colour], np.int32)) for colour in (known[number[0]], number[1]))
            raise UserError(
                f"the masks of {where} have different palettes: {number[0]} is {before} in "
                f'{printable(first[number[0]])} and {after} in {printable(s.shown)}; with a "palette" in '
                'classes.json colours decide, with "palette": null numbers'
            )
        for number in own_colours(s.ids, s.entries):
            known.setdefault(*number)
            first.setdefault(number[0], s.shown)
    return known


def own_colours(ids: Int32[np.ndarray, "n"], entries: Int32[np.ndarray, "m"] | None) -> list[tuple[int, int]]:
    """(number, colour id) of the numbers in a mask that its palette contains."""
    return (
        [] if entries is None else [(number, int(entries[number])) for number in ids.tolist() if number < len(entries)]
    )


def other_colour(
    ids: Int32[np.ndarray, "n"], entries: Int32[np.ndarray, "m"] | None, known: Mapping[int, int]
) -> tuple[int, int] | None:
    """The first number of a mask whose colour id differs from that in `known`, and its colour id; else None."""
    pairs = own_colours(ids, entries)
    return next(((number, colour) for number, colour in pairs if known.get(number, colour) != colour), None)


def check_ids(facts: Sequence[PairFacts], known: Table, count: int, two: bool = False) -> None:
    """Raise UserError for ids that no declared class has; with `two` also if two classes are drawn as 0 and 255."""
    if two and count == 2 and {int(i) for s in facts for i in s.ids} == {0, IGNORE}:
        raise UserError(
            f"all of {len(facts)} masks hold 0 and {IGNORE} alone, and {IGNORE} is no class: for the second of the 2 "
            f'declared classes write "palette": [[0, 0, 0], [255, 255, 255]] into classes.json; if {IGNORE} is none, '
            f'"ignore_index": {IGNORE}'
        )
    offenders = [(s.shown, beyond) for s in facts if len(beyond := np.setdiff1d(s.ids, known.ids))]
    if offenders:
        first = first_of([f"{printable(shown)} has {listed(ids)}" for shown, ids in offenders])
        cure = "the id that is none (ignore_index in classes.json)"
        if any((ids >= COLOUR).any() for _, ids in offenders):
            cure = "behind their colours in the palette of classes.json the one that is none"
        raise UserError(
            f"{len(offenders)} of {len(facts)} masks hold ids beyond the {count} declared classes: {first}; "
            f"declare the classes, or {cure}"
        )


def _size_text(size: Size | None) -> str:
    return "unreadable" if size is None else f"{size[1]}x{size[0]}"


def first_of(offenders: Sequence[str]) -> str:
    """The first three as text for a message."""
    return "; ".join(printable(name) for name in offenders[:3]) + ("; …" if len(offenders) > 3 else "")


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
