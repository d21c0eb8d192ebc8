"""Images with masks of class numbers, for semantic segmentation: two folders, ADE20K's layout, or COCO panoptic.

For all formats `read` returns classes 0..C-1 without gaps, and 255 for pixels without a class.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress
from typing import Protocol

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
from remask.downstream.segment.panoptic_file import read_panoptic
from remask.errors import UserError
from remask.files.bounds import read_file
from remask.images.decoding import BadImage
from remask.images.orientation import Exif
from remask.images.sources.files import files_under, printable, sorted_out
from remask.images.sources.labels import match
from remask.images.sources.left_out import UNNAMED, Patterns

UNDECLARED = Declared(None)
_BESIDE = ("masks", "annotations", "labels")


class MaskSource(Protocol):
    """Numbered images with their masks. Can be pickled, and read in any order by several processes."""

    name: str
    """The folder of images as the user wrote it."""
    classes: list[str]
    palette: list[Colour]
    """A colour for every class, for figures."""
    ignore: int
    """The number in masks that is no class."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> tuple[bytes | np.ndarray, UInt8[np.ndarray, "H W"]]:
        """An encoded image and its mask. Raises OSError for a missing file, BadImage for an unusable mask."""
        ...

    def where(self, i: int) -> str:
        """The image's address for messages, on one line."""
        ...


@dataclass
class MaskFiles:
    """Pairs of files.

    tables    one table for all masks, or one per mask
    coloured  read masks by colour, see `read_mask`
    none      the id in the files that is no class, besides 255
    exif      "stored" or "upright": the image to which masks belong, if EXIF turns it and sizes do not decide
    said      declaration of the classes, also for test masks without one
    entries   {number: colour id} if palettes are read by number: a mask with another palette is unusable
    left_out  numbers of files that were left out, by reason
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
    said: Declared = UNDECLARED
    entries: dict[int, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, i: int) -> tuple[bytes, UInt8[np.ndarray, "H W"]]:
        pair, known = self.pairs[i], self.tables[i % len(self.tables)]
        image = read_file(pair.image)
        ids, entries = read_mask(read_file(pair.mask), self.coloured, self.said.decides)
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
        """The pairs with masks renumbered to `classes`, matched by name.

        other   owner of `classes`, for the error. Raises UserError for a class that is not among them.
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
    """Images below the folder `images`, each with the mask of the same name below `masks`.

    masks        a folder; or a .json, or a folder beside one of its name: COCO panoptic. None: the path of the images
                 with "images" replaced by "masks", "annotations" or "labels" (ADE20K; CamVid as images/ and masks/)
    classes      names or their number. None: those of classes.json ({"classes", "ignore_index", "palette"}) or of
                 ADE20K's objectInfo150.txt in the folder of masks or up to two above, or of `otherwise`; else all
                 masks are read, and the highest id determines the number of classes
    ignore       the id that is no class, besides 255; a class of that number is removed
    reduce_zero  0 is no class, and 1 is the first class (ADE20K)
    limit        use the first N pairs by name
    exif         "stored" or "upright": the image to which masks belong, if EXIF turns it and sizes do not decide
    numbers      read palettes by the numbers of their entries, whatever classes.json says
    exclude      shell-style patterns of paths below the folders to leave out
    At most 2000 pairs are checked here; a fault in another pair makes it unusable when it is read.
    Raises UserError with the first offenders: no pairs, images without masks or masks without images, a mask of
    another size than its image, ids beyond the classes, different palettes without a declared one, fewer than two
    classes or more than 255.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} images leaves nothing: give 1 or more")
    root = masked_folder(images, "images")
    masks_path = _masks_beside(root, images) if masks is None else os.path.expanduser(masks).rstrip("/")
    for path in (masks_path, masks_path + ".json"):
        if path.endswith(".json") and os.path.isfile(path):
            return _open_panoptic(images, root, path, limit, exif, Patterns(exclude, root))
    patterns, left_out = Patterns(exclude, root), Counter[str]()
    pairs = paired(images, root, masked_folder(masks_path, "masks"), patterns, left_out)[:limit]
    stated = declared(masks_path, classes, ignore, otherwise)
    stated, where = stated._replace(numbers=stated.numbers or numbers), printable(masks_path)
    facts, coloured, entries = _examined(pairs, stated, where, exif)
    known = numbered(stated, (int(i) for pair in facts for i in pair.ids), reduce_zero, where)
    check_ids(facts, known.table, len(known.names), two=stated.ignore is None)
    stated = stated._replace(names=known.every)
    return MaskFiles(
        images, pairs, [known.table], coloured, known.names, known.palette, none=stated.ignore, said=stated,
        entries=entries, exif=exif, left_out={**left_out, **patterns.counts},
    )  # fmt: skip


def _examined(
    pairs: Sequence[Pair], declaration: Declared, where: str, exif: Exif | None
) -> tuple[list[PairFacts], bool, dict[int, int]]:
    """(Facts of the pairs, whether masks are read by colour, {number: colour id} if they are not)."""
    facts = examine_pairs(
        pairs, partial(ids_of, palettes=declaration.decides), everything=declaration.names is None, exif=exif
    )
    entries = {} if declaration.palette or declaration.numbers else common_palette(facts, where)
    if coloured := by_colour(
        declaration, (int(i) for pair in facts for i in pair.ids)
    ):  # then gray levels are colours too
        facts = [s._replace(ids=np.where(s.ids < COLOUR, gray_colour(s.ids), s.ids)) for s in facts]
    return facts, coloured, entries


def _masks_beside(root: str, typed: str) -> str:
    """The folder of masks for a folder of images, see `open_masks`. Raises UserError if there is none."""
    folders = os.path.abspath(root).split(os.sep)
    for i in (number for number in reversed(range(len(folders))) if folders[number] == "images"):
        for name in _BESIDE:
            path = os.sep.join([*folders[:i], name, *folders[i + 1 :]])
            if os.path.isdir(path):
                return path
    raise UserError(
        f"no masks are given for {printable(typed)}, and none are found: masks/ or annotations/ beside a folder images/"
    )


def _open_panoptic(
    typed: str, root: str, path: str, limit: int | None, exif: Exif | None, patterns: Patterns
) -> MaskFiles:
    """A COCO panoptic source (format "panoptic segmentation" of cocodataset.org): RGB ids of segments with categories.

    Classes are the categories in the order of the file; void is 255.
    """
    content = read_panoptic(path)
    entries, tables = content.entries, content.tables
    masks = masked_folder(path.removesuffix(".json"), "masks")
    included = [not patterns.exclude(entry[0]) for entry in entries]
    entries, tables = list(compress(entries, included)), list(compress(tables, included))
    left_out, excluded = Counter[str](), list(patterns.patterns)
    image_files, mask_files = files_under(root, Patterns(excluded), left_out), files_under(masks, Patterns(excluded))
    named = {entry[0] for entry in entries}
    check_alone(sorted(named - set(image_files)), path, "entries", "picture")
    check_alone(sorted({entry[1] for entry in entries} - set(mask_files)), path, "entries", "mask")
    if unnamed := len(sorted_out([name for name in image_files if name not in named], left_out)):
        left_out[UNNAMED] = unnamed
    root_path, masks_path = os.path.abspath(root), os.path.abspath(masks)
    pairs = [Pair(os.path.join(root_path, i), os.path.join(masks_path, m), os.path.join(root, i)) for i, m in entries][
        :limit
    ]
    if not pairs or not 2 <= len(content.titles) <= IGNORE:
        raise UserError(
            f"{printable(path)} has {len(pairs)} pictures and {len(content.titles)} classes; 1 and 2 are needed"
        )
    _check_segments(pairs, tables, path, exif)
    counts = {**left_out, **patterns.counts}
    return MaskFiles(typed, pairs, tables[:limit], True, content.titles, content.palette, exif=exif, left_out=counts)


def _check_segments(pairs: Sequence[Pair], tables: Sequence[Table], path: str, exif: Exif | None) -> None:
    """Raise UserError for masks of another size than their images, or with segments that the file does not name."""
    by_mask = {pair.mask: known for pair, known in zip(pairs, tables, strict=False)}

    def unknown(pair: Pair) -> Ids:
        return Ids(np.setdiff1d(np.unique(read_ids(read_file(pair.mask), True)), by_mask[pair.mask].ids))

    facts = examine_pairs(pairs, unknown, exif=exif)
    if faulty := [f"{s.shown} has {listed(s.ids)}" for s in facts if len(s.ids)]:
        raise UserError(
            f"{len(faulty)} of {len(facts)} masks hold ids that {printable(path)} does not name: {first_of(faulty)}; "
            "give the file and the masks that belong together"
        )


__all__ = ["IGNORE", "SCANNED", "MaskFiles", "MaskSource", "Pair", "open_masks"]
