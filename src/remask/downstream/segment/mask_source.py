"""Pictures with masks of class numbers, for semantic segmentation: two folders, ADE20K's layout, or COCO panoptic.

Whatever the files hold, `read` gives classes 0..C-1 without gaps, and 255 where nothing is to be learned.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from remask.downstream.inputs import masked_folder
from remask.downstream.segment.label_map import (
    COLOUR,
    IGNORE,
    Colour,
    Declared,
    Ids,
    Table,
    by_colour,
    colours,
    declared,
    gray_colour,
    listed,
    numbered,
    read_ids,
    read_mask,
    table,
)
from remask.downstream.segment.mask_checks import (
    SCANNED,
    Pair,
    PairFacts,
    check_alone,
    check_ids,
    common_palette,
    different,
    examine_pairs,
    first_of,
    ids_of,
    other_colour,
    paired,
    turned,
)
from remask.errors import UserError
from remask.files.text import read_json
from remask.images.decoding import BadImage
from remask.images.orientation import Exif
from remask.images.sources.files import files_under, printable, sorted_out
from remask.images.sources.labels import match, repeated
from remask.images.sources.left_out import UNNAMED, Patterns

NOTHING_SAID = Declared(None)
_BESIDE = ("masks", "annotations", "labels")


class MaskSource(Protocol):
    """Numbered pictures with their masks. Pickles, and may be read in any order by any number of processes."""

    name: str
    """What the user typed."""
    classes: list[str]
    palette: list[Colour]
    """A colour for every class, for pictures of it."""
    ignore: int
    """The number in masks that is no class."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> tuple[bytes | np.ndarray, UInt8[np.ndarray, "H W"]]:
        """An encoded picture and its mask. Raises OSError where a file is gone, BadImage where a mask is unusable."""
        ...

    def where(self, i: int) -> str:
        """The picture's address for a person, on one line."""
        ...


@dataclass
class MaskFiles:
    """Pairs of files. `tables` is one table for all masks, or one for each; `coloured` as `read_mask` has it.

    exif      "stored" or "upright": what was drawn on where EXIF turns a picture and sizes do not tell
    none      the id in the files that is no class, beside 255
    said      what the classes are where nothing else says it: for the masks that a model is tested on
    entries   the colour of each number, where palettes are read by number: another one may be another order
    """

    name: str
    pairs: list[Pair]
    tables: list[Table]
    coloured: bool
    classes: list[str]
    palette: list[Colour]
    ignore: int = IGNORE
    none: int | None = None
    exif: Exif | None = None
    said: Declared = NOTHING_SAID
    entries: dict[int, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, i: int) -> tuple[bytes, UInt8[np.ndarray, "H W"]]:
        pair, known = self.pairs[i], self.tables[i % len(self.tables)]
        image = Path(pair.image).read_bytes()
        ids, entries = read_mask(Path(pair.mask).read_bytes(), self.coloured, self.said.decides)
        if entries is not None and self.entries and other_colour(different(ids), entries, self.entries):
            raise BadImage("its mask has another palette than others: give a palette in classes.json")
        return image, known.apply(turned(ids, image, self.exif))

    def where(self, i: int) -> str:
        return printable(self.pairs[i].shown)

    def subset(self, numbers: Sequence[int]) -> "MaskFiles":
        """The pairs with the given numbers, in that order, with the same classes."""
        tables = self.tables if len(self.tables) == 1 else [self.tables[i] for i in numbers]
        return replace(self, pairs=[self.pairs[i] for i in numbers], tables=tables)

    def by_classes(self, classes: Sequence[str], other: str) -> "MaskFiles":
        """The pairs with their masks as numbers of `classes`, those of `other`, matched by name.

        Raises UserError for a class that is none of these.
        """
        if self.classes == list(classes):
            return self
        places = match(self.classes, classes, range(len(self.classes)), printable(self.name), other)
        numbers = np.full(IGNORE + 1, IGNORE, np.int32)
        numbers[list(places)] = list(places.values())
        palette = colours(len(classes))
        for number, place in places.items():
            palette[place] = self.palette[number]
        tables = [Table(known.ids, numbers[known.numbers]) for known in self.tables]
        return replace(self, classes=list(classes), palette=palette, tables=tables)


def open_masks(
    images: str,
    masks: str | None = None,
    *,
    classes: Sequence[str] | int | None = None,
    ignore: int | None = None,
    reduce_zero: bool = False,
    limit: int | None = None,
    exif: Exif | None = None,
    otherwise: Declared | None = None,
    numbers: bool = False,
    exclude: Sequence[str] = (),
) -> MaskFiles:
    """Pictures below the folder `images`, each with the mask of the same name below `masks`.

    masks        None: where "images" in the path of the pictures is "masks", "annotations" or "labels" (ADE20K; CamVid
                 as images/ and masks/). A .json, or a folder beside one of its name: COCO panoptic
    classes      names or their number. None: those of classes.json ({"classes", "ignore_index", "palette"}) or of
                 ADE20K's objectInfo150.txt in the folder of masks or up to two above, or of `otherwise`; else every
                 mask is read, and the highest id says how many there are
    ignore       the id that is no class, beside 255; a class of that number is struck from the list
    reduce_zero  0 is no class and 1 is the first (ADE20K)
    limit        the first N pairs in the order of their names
    exif         "stored" or "upright": what was drawn on where EXIF turns a picture and the mask's size does not tell
    numbers      entries of palettes count by number, whatever classes.json says
    exclude      shell-style patterns of paths below the folders that are left out
    Up to 2000 pairs are looked at here; a fault in another one makes that pair unusable when it is read.
    Raises UserError with the first offenders: no pairs, pictures without masks or masks without pictures, a mask of
    another size than its picture, ids beyond the classes, palettes that differ where none is declared, fewer than two
    classes or more than 255.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} images leaves nothing: give 1 or more")
    root = masked_folder(images, "images")
    beside = _beside(root, images) if masks is None else os.path.expanduser(masks).rstrip("/")
    for path in (beside, beside + ".json"):
        if path.endswith(".json") and os.path.isfile(path):
            return _open_panoptic(images, root, path, limit, exif, Patterns(exclude, root))
    patterns, left_out = Patterns(exclude, root), Counter[str]()
    pairs = paired(images, root, masked_folder(beside, "masks"), patterns, left_out)[:limit]
    said = declared(beside, classes, ignore, otherwise)
    said, where = said._replace(numbers=said.numbers or numbers), printable(beside)
    facts, coloured, entries = _looked_at(pairs, said, where, exif)
    found = numbered(said, (int(i) for pair in facts for i in pair.ids), reduce_zero, where)
    check_ids(facts, found.table, len(found.names), two=said.ignore is None)
    said = said._replace(names=found.every)
    return MaskFiles(
        images, pairs, [found.table], coloured, found.names, found.palette, none=said.ignore, said=said,
        entries=entries, exif=exif, left_out={**left_out, **patterns.counts},
    )  # fmt: skip


def _looked_at(
    pairs: Sequence[Pair], said: Declared, where: str, exif: Exif | None
) -> tuple[list[PairFacts], bool, dict[int, int]]:
    """What masks hold, whether their colours decide, and else the colours of their palettes' entries."""
    facts = examine_pairs(pairs, partial(ids_of, palettes=said.decides), everything=said.names is None, exif=exif)
    entries = {} if said.palette or said.numbers else common_palette(facts, where)
    if coloured := by_colour(said, (int(i) for pair in facts for i in pair.ids)):  # then a gray mask is of that colour
        facts = [s._replace(ids=np.where(s.ids < COLOUR, gray_colour(s.ids), s.ids)) for s in facts]
    return facts, coloured, entries


def _beside(root: str, typed: str) -> str:
    """The folder of masks that belongs to one of pictures."""
    folders = os.path.abspath(root).split(os.sep)
    for at in (number for number in reversed(range(len(folders))) if folders[number] == "images"):
        for name in _BESIDE:
            path = os.sep.join([*folders[:at], name, *folders[at + 1 :]])
            if os.path.isdir(path):
                return path
    raise UserError(
        f"no masks are given for {printable(typed)}, and none are found: masks/ or annotations/ beside a folder images/"
    )


def _open_panoptic(
    typed: str, root: str, path: str, limit: int | None, exif: Exif | None, patterns: Patterns
) -> MaskFiles:
    """COCO panoptic (format "panoptic segmentation" of cocodataset.org): RGB ids of segments, each of one category.

    Classes are the categories in the order of the file; void and what no segment names is 255.
    """
    try:
        content = read_json(path, printable(path))
        categories = {int(c["id"]): n for n, c in enumerate(content["categories"])}
        names = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        entries = [(names[a["image_id"]], str(a["file_name"]), a["segments_info"]) for a in content["annotations"]]
        tables = [_segments(segments, categories) for _, _, segments in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{printable(path)} is no COCO panoptic file: {type(error).__name__} {error}") from None
    masks = masked_folder(path.removesuffix(".json"), "masks")
    kept = [not patterns.exclude(entry[0]) for entry in entries]
    entries, tables = list(compress(entries, kept)), list(compress(tables, kept))
    left_out, excluded = Counter[str](), list(patterns.patterns)
    there, drawn = files_under(root, Patterns(excluded), left_out), files_under(masks, Patterns(excluded))
    named = {entry[0] for entry in entries}
    check_alone(sorted(named - set(there)), path, "entries", "picture")
    check_alone(sorted({entry[1] for entry in entries} - set(drawn)), path, "entries", "mask")
    if unnamed := len(sorted_out([name for name in there if name not in named], left_out)):
        left_out[UNNAMED] = unnamed
    at, masks_at = os.path.abspath(root), os.path.abspath(masks)
    pairs = [Pair(os.path.join(at, i), os.path.join(masks_at, m), os.path.join(root, i)) for i, m, _ in entries][:limit]
    if not pairs or not 2 <= len(categories) <= IGNORE:
        raise UserError(
            f"{printable(path)} has {len(pairs)} pictures and {len(categories)} classes; 1 and 2 are needed"
        )
    _check_segments(pairs, tables, path, exif)
    palette = [c.get("color") for c in content["categories"]]
    chosen = [(int(c[0]), int(c[1]), int(c[2])) for c in palette] if all(palette) else colours(len(palette))
    titles = [printable(str(c["name"])) for c in content["categories"]]
    if twice := repeated(titles):
        raise UserError(f"{printable(path)} has two categories of the name {twice!r}: give each its own")
    found = {**left_out, **patterns.counts}
    return MaskFiles(typed, pairs, tables[:limit], True, titles, chosen, exif=exif, left_out=found)


def _check_segments(pairs: Sequence[Pair], tables: Sequence[Table], path: str, exif: Exif | None) -> None:
    """Raise UserError for masks of another size than their pictures, or with segments that the file does not name."""
    by_mask = {pair.mask: known for pair, known in zip(pairs, tables, strict=False)}

    def unknown(pair: Pair) -> Ids:
        return Ids(np.setdiff1d(np.unique(read_ids(Path(pair.mask).read_bytes(), True)), by_mask[pair.mask].ids))

    facts = examine_pairs(pairs, unknown, exif=exif)
    if wrong := [f"{s.shown} has {listed(s.ids)}" for s in facts if len(s.ids)]:
        raise UserError(
            f"{len(wrong)} of {len(facts)} masks hold ids that {printable(path)} does not name: {first_of(wrong)}; "
            "give the file and the masks that belong together"
        )


def _segments(segments: Iterable[Any], categories: dict[int, int]) -> Table:
    ids = {COLOUR + int(segment["id"]): categories[int(segment["category_id"])] for segment in segments}
    return table({COLOUR: IGNORE} | ids)


__all__ = ["IGNORE", "SCANNED", "MaskFiles", "MaskSource", "Pair", "open_masks"]
