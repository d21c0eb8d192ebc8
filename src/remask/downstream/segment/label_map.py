"""Maps the numbers or colours in mask files to classes 0..C-1, and 255 for pixels without a class."""

import io
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from remask.errors import UserError
from remask.files.bounds import MOST_PIXELS, more_than_coded
from remask.files.memory import no_memory
from remask.files.text import read_json, read_text
from remask.images.decoding import FORMATS, UNBOUNDED, BadImage
from remask.images.heif import heif_formats
from remask.images.shortage import claims_too_much, shortage
from remask.images.sources.files import printable
from remask.images.sources.labels import repeated
from remask.images.tiff import missing_strips

IGNORE = 255
"""The class number of pixels without a label."""
COLOUR = 1 << 24
"""The id of a colour is COLOUR + R + 256 G + 65536 B, so that no colour has the id of a gray level."""

Colour: TypeAlias = tuple[int, int, int]


class Table(NamedTuple):
    """Map from ids in files (ascending) to class numbers; the number 255 means no class."""

    ids: Int32[np.ndarray, "n"]
    numbers: Int32[np.ndarray, "n"]

    def apply(self, ids: Int32[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
        """The class numbers of `ids`. Raises BadImage for an id that the table lacks."""
        top = int(self.ids[-1]) + 1
        if top < 1 << 16:
            dense = np.full(top + 1, -1, np.int32)
            dense[self.ids] = self.numbers
            numbers = dense[np.clip(ids, -1, top)]  # -1 and top index the last entry, which is -1
        else:
            position = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
            numbers = np.where(self.ids[position] == ids, self.numbers[position], -1)
        if (numbers < 0).any():
            raise BadImage(f"its mask holds {listed(np.unique(ids[numbers < 0]))}, which is no declared class")
        return numbers.astype(np.uint8)


def table(ids: dict[int, int]) -> Table:
    """The table of {id: class number}."""
    order = sorted(ids)
    return Table(np.array(order, np.int32), np.array([ids[number] for number in order], np.int32))


class Declared(NamedTuple):
    """Declaration of the classes, independent of the masks' content.

    names     of the classes; None if unknown
    ignore    the id that is no class, besides 255
    palette   a colour for each class, by which masks with colours or palettes are read
    numbers   read masks with palettes by the numbers of entries, whatever their colours
    """

    names: list[str] | None
    ignore: int | None = None
    palette: list[Colour] | None = None
    numbers: bool = False

    @property
    def decides(self) -> bool:
        """Whether masks with palettes are read by colour."""
        return self.palette is not None and not self.numbers


class Classes(NamedTuple):
    """The classes of a source: names, colours, table of ids, and all declared names, ignored classes included."""

    names: list[str]
    palette: list[Colour]
    table: Table
    every: list[str]


def declared(
    masks: str, classes: Sequence[str] | int | None, ignore: int | None, otherwise: Declared | None = None
) -> Declared:
    """The declaration in the folder of masks or up to two above, else `otherwise`; `classes` and `ignore` override it.

    Raises UserError for a classes.json that cannot be read as one.
    """
    result = otherwise or Declared(None)
    for folder in (masks, os.path.dirname(masks), os.path.dirname(os.path.dirname(masks))):
        if os.path.isfile(path := os.path.join(folder, "classes.json")):
            result = _from_json(path)
            break
        if os.path.isfile(path := os.path.join(folder, "objectInfo150.txt")):  # ADE20K: tabs, and a line of headings
            lines = [line for line in read_text(path, printable(path)).split("\n") if line.strip()]
            result = Declared([printable(line.split("\t")[-1].split(",")[0].strip()) for line in lines][1:])
            break
    if classes is not None:
        result = result._replace(names=_generic(classes) if isinstance(classes, int) else list(classes))
    return result if ignore is None else result._replace(ignore=ignore)


def _from_json(path: str) -> Declared:
    try:
        content = read_json(path, printable(path))
        fields = content if isinstance(content, dict) else {"classes": content}
        said, palette, ignore = fields["classes"], fields.get("palette"), fields.get("ignore_index")
        if not isinstance(said, list) or not all(isinstance(name, str | int | float) for name in said):
            raise ValueError("classes are no list of names")
        if not isinstance(palette, list | None):
            raise ValueError("the palette is no list of colours")
        if not (ignore is None or (type(ignore) is int and -COLOUR < ignore < COLOUR)):
            raise ValueError(f"ignore_index is {ignore!r:.40}, and no number of a mask")
        names = [printable(str(name)) for name in said]
        colour = None if palette is None else [_colour(entry) for entry in palette]
        result = Declared(names, ignore, colour, numbers="palette" in fields and palette is None)
    except (OSError, ValueError, TypeError, KeyError) as error:
        shape = '{"classes": [names], "ignore_index": id, "palette": [[r, g, b]]}'
        raise UserError(f"{printable(path)} cannot be read as {shape}: {error}") from None
    if duplicate := repeated(names):
        raise UserError(f"{printable(path)} names two classes {duplicate!r}: give each its own name")
    return result


def _colour(entry: Any) -> Colour:
    """Red, green and blue, without an alpha after them. Raises ValueError for an entry that is no colour."""
    if (
        not isinstance(entry, list)
        or len(entry) not in (3, 4)
        or not all(type(value) is int and 0 <= value <= 255 for value in entry)
    ):
        raise ValueError(f"{entry!r:.40} is no colour of three numbers 0..255")
    return entry[0], entry[1], entry[2]


def _generic(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


def numbered(declaration: Declared, ids: Iterable[int], reduce_zero: bool, where: str) -> Classes:
    """The classes of masks that hold `ids`; the highest id determines the number of undeclared classes.

    Ignored classes are removed, and later ones move up. Raises UserError for fewer than 2 or more than 255 classes.
    """
    ids, first = set(ids), int(reduce_zero)
    none = {IGNORE, *([] if declaration.ignore is None else [declaration.ignore]), *([0] if reduce_zero else [])}
    names, coloured = declaration.names, any(number >= COLOUR for number in ids)
    if coloured and (names is None or declaration.palette is None):
        raise UserError(f"the masks of {where} are coloured: give classes and palette in a classes.json beside them")
    if names is None:
        names = _generic(max(ids - none, default=first - 1) + 1 - first)
    kept = [k for k in range(len(names)) if k + first not in none]
    if not 2 <= len(kept) <= IGNORE:
        raise UserError(
            f"the masks of {where} have {len(kept)} class{'es' * (len(kept) != 1)}, and segmentation needs 2 to 255: "
            "declare them in a classes.json (255 in a mask is no class: save a foreground as 1)"
        )
    declared_palette = declaration.palette or []
    palette = [*declared_palette, *colours(len(names))[len(declared_palette) :]]
    if coloured:
        known = _by_colour(declared_palette, names, kept, where)
    else:
        known = {k + first: n for n, k in enumerate(kept)} | dict.fromkeys(none, IGNORE)
    return Classes([names[k] for k in kept], [palette[k] for k in kept], table(known), names)


def _by_colour(palette: Sequence[Colour], names: Sequence[str], kept: Sequence[int], where: str) -> dict[int, int]:
    """Colour id → class number; IGNORE for colours of ignored classes and those beyond the classes."""
    if kept[-1] >= len(palette):
        lacking = next(k for k in kept if k >= len(palette))
        raise UserError(
            f"the masks of {where} are coloured, and the palette has {len(palette)} colours for {len(names)} classes: "
            f"give {names[lacking]!r} one too in classes.json"
        )
    numbers = {k: n for n, k in enumerate(kept)}
    known: dict[int, int] = {}
    for k, colour in enumerate(palette):
        if known.setdefault(colour_id(colour), numbers.get(k, IGNORE)) != numbers.get(k, IGNORE):
            raise UserError(f"the palette of {where} gives {colour} to two classes: give each its own in classes.json")
    return known


def by_colour(declaration: Declared, ids: Iterable[int]) -> bool:
    """Whether masks with these ids are read by colour: some id is a colour, or all gray levels are palette colours."""
    distinct = set(ids)
    if any(number >= COLOUR for number in distinct):
        return True
    known = {colour_id(colour) for colour in declaration.palette or () if declaration.decides}
    return bool(distinct - {0}) and all(gray_colour(number) in known for number in distinct)


def gray_colour(level: Any) -> Any:
    """The colour id of an 8-bit gray level, or of an array of levels."""
    return COLOUR + 0x010101 * level


class Ids(NamedTuple):
    """Ids in a mask, and the colour ids of its palette's entries if the ids are numbers of these; else None."""

    ids: Int32[np.ndarray, "*shape"]
    entries: Int32[np.ndarray, "n"] | None = None


def read_ids(data: bytes, coloured: bool = False) -> Int32[np.ndarray, "H W"]:
    """The ids of `read_mask` alone."""
    return read_mask(data, coloured).ids


def read_mask(data: bytes, coloured: bool = False, palettes: bool = False) -> Ids:
    """The ids in a mask file: gray levels of 1, 8 or 16 bits, numbers of palette entries, or colour ids.

    coloured   read colour ids throughout; else an RGB mask whose channels are equal everywhere is gray
    palettes   read palette entries as colours, unless every used entry is gray and of the level of its number
    Raises BadImage for files that cannot be read, and kinds of images that are no masks.
    """
    try:
        with Image.open(io.BytesIO(data), formats=heif_formats(data, FORMATS)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise BadImage(f"its mask of {image.width}x{image.height} is more than {MOST_PIXELS:,} pixels")
            if why := missing_strips(image) or (image.format in UNBOUNDED and more_than_coded(*image.size, len(data))):
                raise BadImage(f"its mask: {why}")
            if image.format == "JPEG":
                raise BadImage("its mask is a JPEG, which blurs class ids: save masks as PNG")
            if image.mode not in ("1", "L", "P", "LA", "PA", "I", "RGB", "RGBA") and not image.mode.startswith("I;16"):
                raise BadImage(f"its mask has pixels of mode {image.mode}: integers and RGB are read")
            tags: Any = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
            if tags.get(262) == 0 and image.mode != "1":  # Pillow inverts 8 bits, but not 16
                raise BadImage("its mask is a TIFF whose lowest value is white, which turns ids round: save it as PNG")
            if image.mode in ("P", "PA"):
                return _indexed(image, coloured, palettes)
            ids = np.array(image.convert("RGB") if coloured else image).astype(np.int32)
    except BadImage:
        raise
    except Exception as error:  # Pillow's plugins raise nearly everything on broken data
        if no_memory(error) and not claims_too_much(data):
            raise UserError(shortage(data)) from None
        raise BadImage(f"its mask: {' '.join(str(error).split()) or type(error).__name__}") from error
    if ids.ndim == 2:
        return Ids(ids)
    if ids.shape[-1] == 2 or (not coloured and (ids[..., :1] == ids[..., 1:3]).all()):
        return Ids(ids[..., 0])
    return Ids(COLOUR + ids[..., 0] + 256 * ids[..., 1] + 65536 * ids[..., 2])


def _indexed(image: Image.Image, coloured: bool, palettes: bool) -> Ids:
    """The ids of a mask with a palette, by number or by colour; transparency is ignored."""
    numbers = np.array(image).astype(np.int32)
    numbers = numbers[..., 0] if numbers.ndim == 3 else numbers  # without alpha
    colour = np.array(image.getpalette("RGB") or (), np.int32).reshape(-1, 3)
    entries = (COLOUR + colour @ np.array([1, 256, 65536])).astype(np.int32)
    if not (coloured or palettes):
        return Ids(numbers, entries)
    used = np.unique(numbers)
    if used[-1] >= len(entries):
        raise BadImage(f"its mask has entry {used[-1]} of a palette of {len(entries)} colours")
    gray_by_number = not coloured and (colour[used] == used[:, None]).all()
    return Ids(numbers if gray_by_number else entries[numbers])


def colour_id(colour: Sequence[int]) -> int:
    """The id of a colour (r, g, b), as in `read_ids`."""
    return COLOUR + colour[0] + 256 * colour[1] + 65536 * colour[2]


def listed(ids: Int32[np.ndarray, "n"]) -> str:
    """The first three ids as text for a message; colours as (r, g, b)."""
    numbers = [int(number) for number in ids]
    shown = [str((n & 255, n >> 8 & 255, n >> 16 & 255)) if n >= COLOUR else str(n) for n in numbers[:3]]
    return ", ".join(shown) + (", …" if len(numbers) > 3 else "")


def colours(count: int) -> list[Colour]:
    """`count` distinct colours, for classes without a palette: PASCAL VOC's colour map without its black."""
    return [_voc(number) for number in range(1, count + 1)]


def _voc(number: int) -> Colour:
    """Bits 0, 3, 6 of the number are the highest of red, bits 1, 4, 7 of green, 2, 5, 8 of blue."""
    red, green, blue = (sum((number >> (3 * i + c) & 1) << (7 - i) for i in range(3)) for c in range(3))
    return red, green, blue


__all__ = [
    "COLOUR", "IGNORE", "Classes", "Colour", "Declared", "Ids", "Table", "by_colour", "colour_id", "colours",
    "declared", "gray_colour", "listed", "numbered", "read_ids", "read_mask", "table",
]  # fmt: skip
