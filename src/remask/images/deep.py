"""Images that Pillow does not read as they are: 16 bits a colour, more than four bands, arrays. All become HWC.

`decoding` interprets the values; nothing here does.
"""

import re
import struct
import warnings
import zlib
from itertools import accumulate
from typing import Any

import numpy as np

from remask.files.bounds import more_than_coded
from remask.images.arrays import EXTRA, Deep, Unread, bands_last, fits, laid_out, only_array, plain_array, upright
from remask.images.tiff import TIFF, misread_planes, read_tiff


def read_deep(data: bytes, channels: int, max_pixels: int) -> Deep | None:
    """An image that Pillow would cut to 8 bits or refuse; None for one that Pillow reads whole.

    Raises Unread, and any exception that a library raises on a damaged file.
    """
    if data[:6] == b"\x93NUMPY":
        return laid_out(plain_array(data, max_pixels), channels)
    if data[:4] == b"PK\x03\x04":
        return laid_out(only_array(data, max_pixels), channels)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10" and data[25:26] != b"\0":
        return _png(data, max_pixels)
    if data[:4] in TIFF:
        return read_tiff(data, channels, max_pixels)
    if data[:2] in (b"P6", b"P3"):
        return _ppm(data, max_pixels)
    if data[4:8] == b"jP  " and (at := data.find(b"ihdr")) > 0:
        if unknown := _other_space(data, deep := data[at + 14] & 0x7F > 7):
            raise Unread(f"a JPEG 2000 of colour space {unknown}, which is not converted here: save it as RGB")
        return _jpeg2000(data, at + 4, max_pixels) if deep else None
    return None


def _library(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise Unread(f"more than 8 bits a colour are read by {name}: {EXTRA}") from None


def _other_space(data: bytes, deep: bool = False) -> int:
    """The number of a JPEG 2000's colour space, unless it is RGB, gray, sYCC or 8-bit CMYK, which are read; else 0.

    The box of colour states it, if by a number (15444-1, I.5.3.3; 15444-2, M.11.7.3).
    """
    at = data.find(b"colr", 0, max(data.find(b"jp2c"), 0))
    space = int.from_bytes(data[at + 7 : at + 11]) if at > 0 and data[at + 4] == 1 else 0
    return 0 if space in (0, 15, 16, 17, 18, 20, 21) or (space == 12 and not deep) else space


def _jpeg2000(data: bytes, header: int, max_pixels: int) -> Deep:
    """More than 8 bits a colour. The header's box holds height, width and the number of bands (15444-1, I.5.3.1)."""
    height, width = (int.from_bytes(data[at : at + 4]) for at in (header, header + 4))
    fits(width, height, max_pixels)
    if (at := data.find(b"\xff\x4f\xff\x51")) > 0:  # the image's own header (15444-1, A.5.1), which decoders go by
        columns, rows, left, top = (int.from_bytes(data[at + n : at + n + 4]) for n in (8, 12, 16, 20))
        fits(columns - left, rows - top, max_pixels)
        if claims := more_than_coded(columns - left, rows - top, len(data)):
            raise Unread(claims)
    values = bands_last(_library("imagecodecs").jpeg2k_decode(data))
    return Deep(values, int(values.shape[2] in (2, 4)))


def _png(data: bytes, max_pixels: int) -> Deep:
    """16-bit colours, or gray with alpha, of which Pillow keeps the high byte."""
    import torch

    warnings.filterwarnings("ignore", message="The image decoding and encoding", category=DeprecationWarning)
    from torchvision.io import ImageReadMode, decode_png

    fits(int.from_bytes(data[16:20]), int.from_bytes(data[20:24]), max_pixels)
    pixels = decode_png(torch.frombuffer(bytearray(_sound_png(data)), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return Deep(pixels.permute(1, 2, 0).numpy(), int(len(pixels) in (2, 4)))


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Column, row and their steps of each pass of an interlaced PNG (PNG, 8.2)."""


def _sound_png(data: bytes) -> bytes:
    """The pixels of a 16-bit PNG as a PNG without any fault and without other chunks. Raises Unread where it has one.

    torchvision crashes, and the process with it, wherever libpng finds an error, as in a file that is cut short.
    """
    width, height, _, colour, *methods = struct.unpack(">IIBBBBB", data[16:29])
    channels = {2: 3, 4: 2, 6: 4}.get(colour, 0)
    if (
        data[12:16] != b"IHDR"
        or not channels
        or methods[:2] != [0, 0]
        or methods[2] > 1
        or not 0 < width <= 10**6
        or not 0 < height <= 10**6
    ):
        raise Unread("a PNG with a header that no PNG has")
    at, packed = 33, list[bytes]()
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed.append(data[at + 8 : at + 8 + length])
        at += 12 + length
    passes = _ADAM7 if methods[2] else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    lines = [1 + 2 * channels * columns for columns, rows in sizes if columns > 0 for _ in range(max(0, rows))]
    try:
        pixels = zlib.decompressobj().decompress(b"".join(packed), sum(lines))
    except zlib.error as error:
        raise Unread(f"its pixels are damaged ({error})") from None
    filters = (
        pixels[:: lines[0]]
        if not methods[2]
        else bytes(pixels[at] for at in accumulate([0, *lines[:-1]]) if at < len(pixels))
    )
    if len(pixels) < sum(lines) or max(filters, default=5) > 4:
        raise Unread("its pixels are damaged or end too early")
    chunks = ((b"IHDR", data[16:29]), (b"IDAT", zlib.compress(pixels, 0)), (b"IEND", b""))
    return data[:8] + b"".join(
        len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4) for name, content in chunks
    )


def _ppm(data: bytes, max_pixels: int) -> Deep | None:
    """Colours of 16 bits, scaled from the file's own maximum to 65535; None where 8 bits hold them."""
    numbers, at = list[int](), 2
    while len(numbers) < 3:
        end = at
        while end < len(data) and not data[end : end + 1].isspace():
            end += 1
        word = data[at:end]
        if word.startswith(b"#"):
            end = data.find(b"\n", at)
            if end < 0:
                return None
        elif word:
            numbers.append(int(word))
        elif end >= len(data):
            return None
        at = end + 1
    width, height, most = numbers
    if most < 256:
        return None
    fits(width, height, max_pixels)
    if data[:2] == b"P3":  # as text
        words = re.sub(rb"#[^\n]*", b"", data[at:]).split()[: width * height * 3]
        values = np.array(words).astype(np.int64).reshape(height, width, 3)
    else:
        values = np.frombuffer(data, ">u2", width * height * 3, at).reshape(height, width, 3)
    return Deep(np.rint(values.astype(np.float64) * (65535 / most)).astype(np.uint16))


def misread_by_pillow(data: bytes) -> bool:
    """Whether Pillow decodes a file to noise: a TIFF of deep planes, or a JPEG 2000 whose colours it takes for RGB."""
    if data[:4] in TIFF:
        return misread_planes(data)
    return data[4:8] == b"jP  " and bool(_other_space(data))


__all__ = ["EXTRA", "Deep", "Unread", "laid_out", "misread_by_pillow", "read_deep", "upright"]
