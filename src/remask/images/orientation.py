"""How EXIF turns an image (Exif 2.32, tag 0x0112), from its header, and boxes, polygons and masks turned with it."""

import io
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from remask.images.decoding import FORMATS
from remask.types import Size

Exif = Literal["stored", "upright"]
"""The pixels that annotations refer to, where sizes do not tell: as stored in the file, or turned upright."""

FLIPS: dict[int, tuple[bool, bool, bool]] = {
    1: (False, False, False), 2: (True, False, False), 3: (True, True, False), 4: (False, True, False),
    5: (False, False, True), 6: (False, True, True), 7: (True, True, True), 8: (True, False, True),
}  # fmt: skip
"""Orientation -> columns reversed, rows reversed, then rows and columns exchanged."""


class Header(NamedTuple):
    """Height and width of the pixels in the file, and the orientation, 1 to 8, that turns them upright."""

    stored: Size
    orientation: int

    @property
    def upright(self) -> Size:
        """Height and width of the upright image, as it is decoded."""
        return self.stored[::-1] if FLIPS[self.orientation][2] else self.stored


def read_header(file: BinaryIO | io.BytesIO) -> Header | None:
    """Size and orientation of an encoded image without its pixels; None where the header cannot be read.

    The file is read from its start, a few kilobytes of it in the formats that cameras write.
    """
    try:
        start = file.read(24)
        if start[:2] == b"\xff\xd8":
            return _of_jpeg(file)
        if start[:8] == b"\x89PNG\r\n\x1a\n" and start[12:16] == b"IHDR" and (plain := _of_png(file, start)):
            return plain
        file.seek(0)
        return _of_pillow(file)
    except Exception:  # Pillow's plugins raise nearly everything; decoding the image reports the fault
        return None


def header_of(data: bytes) -> Header | None:
    """`read_header` of bytes."""
    return read_header(io.BytesIO(data))


def _of_jpeg(file: BinaryIO | io.BytesIO) -> Header | None:
    """Markers up to the frame header (ITU T.81, B.1.1), and Exif's segment on the way."""
    file.seek(2)
    orientation = 1
    while len(head := file.read(4)) == 4:
        marker, length = head[1], int.from_bytes(head[2:])
        if head[0] != 0xFF or marker in (0xD9, 0xDA):
            return None
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # fill, and markers without a length
            file.seek(-3 if marker == 0xFF else -2, 1)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = file.read(5)
            return Header((int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])), orientation)
        elif marker == 0xE1 and orientation == 1:
            segment = file.read(length - 2)
            if segment[:6] == b"Exif\0\0":
                exif = Image.Exif()
                exif.load(segment)
                orientation = _known(exif.get(ExifTags.Base.Orientation))
        else:
            file.seek(length - 2, 1)
    return None


def _of_png(file: BinaryIO | io.BytesIO, start: bytes) -> Header | None:
    """The size in the first chunk, where no other chunk tells of an orientation; else None."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4]), head[4:]
        if kind == b"eXIf":
            return None
        if kind in (b"iTXt", b"zTXt", b"tEXt"):
            if file.read(length).startswith((b"XML:com.adobe.xmp", b"Raw profile type exif")):
                return None
            file.seek(4, 1)
        else:
            file.seek(length + 4, 1)
    return Header((int.from_bytes(start[20:24]), int.from_bytes(start[16:20])), 1)


def _of_pillow(file: BinaryIO | io.BytesIO) -> Header:
    Image.init()
    with Image.open(file, formats=FORMATS) as image:
        orientation = _known(image.getexif().get(ExifTags.Base.Orientation))
        tags = getattr(image, "tag_v2", None)  # Pillow gives the upright size of a TIFF
        return Header((int(tags[257]), int(tags[256])) if tags else (image.height, image.width), orientation)


def _known(orientation: Any) -> int:
    return int(orientation) if orientation in FLIPS else 1


def agreed(size: Size, header: Header, exif: Exif | None) -> int | str:
    """The orientation that turns annotations for an image of this size upright; a text: why there is none.

    size   height and width that the annotations state
    exif   decides where the upright image has the same size as the stored one
    """
    orientation, same = header.orientation, header.stored == header.upright
    if size != header.stored and size != header.upright:
        upright = header.upright
        return f"{upright[1]}x{upright[0]} pixels, where the annotations say {size[1]}x{size[0]}"
    if not same or orientation == 1:
        return 1 if size == header.upright else orientation
    if exif is None:
        return f"EXIF turns it (orientation {orientation}), and its size does not tell which way the annotations are"
    return 1 if exif == "upright" else orientation


def turned_size(size: Size, orientation: int) -> Size:
    """Height and width after turning."""
    return (size[1], size[0]) if FLIPS[orientation][2] else size


def turned_points(points: list[float], size: Size, orientation: int) -> list[float]:
    """Points x, y, x, y, … on an image of height and width `size`, as they lie on the turned one."""
    columns, rows, exchanged = FLIPS[orientation]
    x = [size[1] - value for value in points[0::2]] if columns else points[0::2]
    y = [size[0] - value for value in points[1::2]] if rows else points[1::2]
    pairs = zip(y, x, strict=True) if exchanged else zip(x, y, strict=True)
    return [value for pair in pairs for value in pair]


def turned_box(box: list[float], size: Size, orientation: int) -> list[float]:
    """A box x, y, width, height on the turned image."""
    x, y, width, height = box
    corners = turned_points([x, y, x + width, y + height], size, orientation)
    if FLIPS[orientation][2]:
        width, height = height, width
    return [min(corners[0::2]), min(corners[1::2]), width, height]


def turned_mask(mask: np.ndarray, orientation: int) -> np.ndarray:
    """An array HW turned."""
    columns, rows, exchanged = FLIPS[orientation]
    mask = mask[:: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(mask.T if exchanged else mask)


INVERSE = {**{number: number for number in FLIPS}, 6: 8, 8: 6}
"""Orientation -> the one that turns back."""


__all__ = [
    "FLIPS", "INVERSE", "Exif", "Header", "agreed", "header_of", "read_header", "turned_box", "turned_mask",
    "turned_points", "turned_size",
]  # fmt: skip
