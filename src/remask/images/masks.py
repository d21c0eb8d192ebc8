"""Pictures with masks of class numbers, for semantic segmentation: two folders, ADE20K's layout, or COCO panoptic.

Whatever the files hold, `read` gives classes 0..C-1 without gaps, and 255 where nothing is to be learned.
"""

import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import ExifTags, Image

from remask.images.classes import COLOUR, IGNORE, Colour, Table, colours, declared, listed, numbered, read_ids, table
from remask.images.decoding import FORMATS, BadImage
from remask.images.files import describe, files_under, is_picture, printable
from remask.types import Size, UserError

SCANNED = 2000
"""Pairs looked at before anything begins, evenly spread over a larger source; all where classes are to be found."""
_BESIDE = ("masks", "annotations", "labels")
_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "dev"))


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


class Pair(NamedTuple):
    """Paths of a picture and its mask, and how the picture is shown."""

    image: str
    mask: str
    shown: str


@dataclass
class MaskFiles:
    """Pairs of files. `tables` is one table for all masks, or one for each; `coloured` as `read_ids` has it.

    none       the id in the files that is no class, beside 255
    declared   whether a file beside the masks names the classes
    """

    name: str
    pairs: list[Pair]
    tables: list[Table]
    coloured: bool
    classes: list[str]
    palette: list[Colour]
    ignore: int = IGNORE
    none: int | None = None
    declared: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, i: int) -> tuple[bytes, UInt8[np.ndarray, "H W"]]:
        pair, known = self.pairs[i], self.tables[i % len(self.tables)]
        return _bytes(pair.image), known.apply(read_ids(_bytes(pair.mask), self.coloured))

    def where(self, i: int) -> str:
        return printable(self.pairs[i].shown)

    def subset(self, numbers: Sequence[int]) -> "MaskFiles":
        """The pairs with the given numbers, in that order, with the same classes."""
        tables = self.tables if len(self.tables) == 1 else [self.tables[i] for i in numbers]
        return replace(self, pairs=[self.pairs[i] for i in numbers], tables=tables)


def open_masks(
    images: str,
    masks: str | None = None,
    *,
    classes: Sequence[str] | int | None = None,
    ignore: int | None = None,
    reduce_zero: bool = False,
    limit: int | None = None,
) -> MaskFiles:
    """Pictures below the folder `images`, each with the mask of the same name below `masks`.

    masks        None: where "images" in the path of the pictures is "masks", "annotations" or "labels" (ADE20K; CamVid
                 as images/ and masks/). A .json, or a folder beside one of its name: COCO panoptic
    classes      names or their number. None: those of classes.json ({"classes", "ignore_index", "palette"}) or of
                 ADE20K's objectInfo150.txt in the folder of masks or up to two above; else every mask is read, and
                 the highest id says how many there are
    ignore       the id that is no class, beside 255; a class of that number is struck from the list
    reduce_zero  0 is no class and 1 is the first (ADE20K)
    limit        the first N pairs in the order of their names
    Up to 2000 pairs are looked at here; a fault in another one makes that pair unusable when it is read.
    Raises UserError with the first offenders: no pairs, pictures without masks or masks without pictures, a mask of
    another size than its picture, ids beyond the classes, fewer than two classes or more than 255.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} images leaves nothing: give 1 or more")
    root = _folder(images, "images")
    beside = _beside(root, images) if masks is None else os.path.expanduser(masks).rstrip("/")
    for path in (beside, beside + ".json"):
        if path.endswith(".json") and os.path.isfile(path):
            return _open_panoptic(images, root, path, limit)
    pairs = _paired(images, root, _folder(beside, "masks"))[:limit]
    said = declared(beside, classes, ignore)
    seen = _look(pairs, _ids_of, everything=said.names is None)
    if coloured := any((pair.ids >= COLOUR).any() for pair in seen):  # then a gray mask is of that colour
        seen = [s._replace(ids=np.where(s.ids < COLOUR, COLOUR + 0x010101 * s.ids, s.ids)) for s in seen]
    found = numbered(said, (int(i) for pair in seen for i in pair.ids), reduce_zero, printable(beside))
    _check_ids(seen, found.table, len(found.names))
    told = classes is None and said.names is not None
    return MaskFiles(
        images, pairs, [found.table], coloured, found.names, found.palette, none=said.ignore, declared=told
    )


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _folder(path: str, what: str) -> str:
    path = os.path.expanduser(path).rstrip("/") or "/"
    if not os.path.isdir(path):
        raise UserError(f"there is no folder of {what} {printable(path)!r}")
    return path


def _beside(root: str, typed: str) -> str:
    """The folder of masks that belongs to one of pictures."""
    parts = os.path.abspath(root).split(os.sep)
    for at in (number for number in reversed(range(len(parts))) if parts[number] == "images"):
        for name in _BESIDE:
            path = os.sep.join([*parts[:at], name, *parts[at + 1 :]])
            if os.path.isdir(path):
                return path
    raise UserError(
        f"no masks are given for {printable(typed)}, and none are found: masks/ or annotations/ beside a folder images/"
    )


def _paired(typed: str, root: str, masks: str) -> list[Pair]:
    """Picture and mask by common name, in the order of the names."""
    stems: list[dict[str, str]] = []
    for folder in (root, masks):
        files = files_under(folder)
        stems.append({os.path.splitext(path)[0]: path for path in files if is_picture(path)})
        if not stems[-1]:
            raise UserError(f"{printable(folder)} holds no images: {describe(files)}")
    tops = {path.split(os.sep)[0] for path in stems[0].values()}
    if len(tops) > 1 and tops <= _SPLITS:
        every = ", ".join(sorted(tops))
        raise UserError(f"{printable(typed)} holds the splits {every}: name one, as in {root}/{sorted(tops)[0]}")
    common = [stem for stem in stems[0] if stem in stems[1]]
    if not common:
        one, other = (next(iter(found.values())) for found in stems)
        raise UserError(
            f"no picture has a mask of its name: {printable(typed)} holds {printable(one)} and {printable(masks)} "
            f"{printable(other)}; rename them alike"
        )
    _check_alone([path for stem, path in stems[0].items() if stem not in stems[1]], typed, "pictures", "mask")
    _check_alone([path for stem, path in stems[1].items() if stem not in stems[0]], masks, "masks", "picture")
    at, masks_at = os.path.abspath(root), os.path.abspath(masks)
    return [
        Pair(os.path.join(at, stems[0][s]), os.path.join(masks_at, stems[1][s]), os.path.join(root, stems[0][s]))
        for s in common
    ]


def _check_alone(alone: Sequence[str], where: str, what: str, missing: str) -> None:
    if alone:
        raise UserError(
            f"{len(alone)} {what} of {printable(where)} have no {missing}: {_first(alone)}; add or remove them"
        )


class _Seen(NamedTuple):
    """What a look at a pair found; None and no ids where a file cannot be read, which is for the loader to say."""

    shown: str
    image: Size | None
    mask: Size | None
    ids: Int32[np.ndarray, "n"]


def _look(
    pairs: Sequence[Pair], ids: Callable[[Pair], Int32[np.ndarray, "n"]] | None, everything: bool = False
) -> list[_Seen]:
    """A look at all pairs, or at SCANNED of them. Raises UserError for masks of another size than their pictures."""

    def look(pair: Pair) -> _Seen:
        try:
            return _Seen(pair.shown, _size(pair.image), _size(pair.mask), ids(pair) if ids else np.empty(0, np.int32))
        except (BadImage, OSError):
            return _Seen(pair.shown, None, None, np.empty(0, np.int32))

    chosen = pairs if everything or len(pairs) <= SCANNED else pairs[:: -(-len(pairs) // SCANNED)]
    with ThreadPoolExecutor(8, "remask-masks") as pool:  # decoding lets go of the interpreter
        seen = list(pool.map(look, chosen))
    wrong = [f"{s.shown} is {_by(s.image)}, its mask {_by(s.mask)}" for s in seen if s.image != s.mask]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(seen)} masks are of another size than their picture: {_first(wrong)}; "
            "resize them to the nearest pixel, or name the folders that belong together"
        )
    return seen


def _ids_of(pair: Pair) -> Int32[np.ndarray, "n"]:
    ids = read_ids(_bytes(pair.mask))
    if ids.min() >= 0 and ids.max() < 1 << 16:
        return np.flatnonzero(np.bincount(ids.ravel())).astype(np.int32)  # ten times faster than sorting
    return np.unique(ids)


def _size(path: str) -> Size:
    """Height and width from the header, turned as EXIF says."""
    try:
        with Image.open(io.BytesIO(_bytes(path)), formats=FORMATS) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except OSError:
        raise
    except Exception as error:
        raise BadImage(str(error)) from error


def _check_ids(seen: Sequence[_Seen], known: Table, count: int) -> None:
    wrong = [(s.shown, beyond) for s in seen if len(beyond := np.setdiff1d(s.ids, known.ids))]
    if wrong:
        first = _first([f"{printable(shown)} has {listed(ids)}" for shown, ids in wrong])
        raise UserError(
            f"{len(wrong)} of {len(seen)} masks hold ids beyond the {count} declared classes: {first}; "
            "declare the classes, or the id that is none (ignore_index in classes.json)"
        )


def _by(size: Size | None) -> str:
    return "unreadable" if size is None else f"{size[1]}x{size[0]}"


def _first(offenders: Sequence[str]) -> str:
    return "; ".join(printable(one) for one in offenders[:3]) + ("; …" if len(offenders) > 3 else "")


def _open_panoptic(typed: str, root: str, path: str, limit: int | None) -> MaskFiles:
    """COCO panoptic (format "panoptic segmentation" of cocodataset.org): RGB ids of segments, each of one category.

    Classes are the categories in the order of the file; void and what no segment names is 255.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        categories = {int(c["id"]): n for n, c in enumerate(content["categories"])}
        names = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        entries = [(names[a["image_id"]], str(a["file_name"]), a["segments_info"]) for a in content["annotations"]]
        tables = [_segments(segments, categories) for _, _, segments in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{printable(path)} is no COCO panoptic file: {type(error).__name__} {error}") from None
    masks = _folder(path.removesuffix(".json"), "masks")
    _check_alone(sorted({e[0] for e in entries} - set(files_under(root))), path, "entries", "picture")
    _check_alone(sorted({e[1] for e in entries} - set(files_under(masks))), path, "entries", "mask")
    at, masks_at = os.path.abspath(root), os.path.abspath(masks)
    pairs = [Pair(os.path.join(at, i), os.path.join(masks_at, m), os.path.join(root, i)) for i, m, _ in entries][:limit]
    if not pairs or not 2 <= len(categories) <= IGNORE:
        raise UserError(
            f"{printable(path)} has {len(pairs)} pictures and {len(categories)} classes; 1 and 2 are needed"
        )
    _look(pairs, None)
    palette = [c.get("color") for c in content["categories"]]
    chosen = [(int(c[0]), int(c[1]), int(c[2])) for c in palette] if all(palette) else colours(len(palette))
    titles = [str(c["name"]) for c in content["categories"]]
    return MaskFiles(typed, pairs, tables[:limit], True, titles, chosen, declared=True)


def _segments(segments: Iterable[Any], categories: dict[int, int]) -> Table:
    ids = {COLOUR + int(segment["id"]): categories[int(segment["category_id"])] for segment in segments}
    return table({COLOUR: IGNORE} | ids)


__all__ = ["IGNORE", "SCANNED", "MaskFiles", "MaskSource", "Pair", "open_masks"]
