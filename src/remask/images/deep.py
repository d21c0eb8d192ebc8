"""Pictures that Pillow does not read as they are: 16 bits a colour, more than four bands, arrays. All become HWC.

Nothing here knows what the values mean; `decoding` has that.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WHITE, BLACK, PALETTE, SEPARATED, YCBCR, LAB = 0, 1, 3, 5, 6, 8
"""What TIFF's PhotometricInterpretation says: gray of which the lowest value is white or black, and kinds of colour."""
UNCONVERTED = {
    4: "transparency mask", YCBCR: "YCbCr", LAB: "CIELAB", 9: "ICC LAB", 10: "ITU LAB", 32803: "camera mosaic (CFA)",
    32844: "LogL", 32845: "LogLuv", 34892: "linear raw data of a camera",
}  # fmt: skip
"""Those that nothing here turns into gray or RGB: taken as they are, such numbers would be another picture."""
EXTRA = "pip install 'remask[data]'"


MOST_BANDS = 16
"""Of an array without a shorter axis than this one may think that it holds many images."""


class Unread(Exception):  # noqa: N818  (a fact about a picture)
    """Why a picture cannot be read, in one line."""


class Deep(NamedTuple):
    """Values HWC, of which the last `extra` bands are alpha or the like: left out where fewer are wanted."""

    values: np.ndarray
    extra: int = 0


def read_deep(data: bytes, channels: int, max_pixels: int) -> Deep | None:
    """A picture that Pillow would cut to 8 bits or refuse; None for one that Pillow reads whole.

    Raises Unread; what libraries raise on damaged files goes through.
    """
    if data[:6] == b"\x93NUMPY":
        return laid_out(np.load(io.BytesIO(data), allow_pickle=False), channels)
    if data[:4] == b"PK\x03\x04":
        return laid_out(_only_array(data, max_pixels), channels)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10" and data[25:26] != b"\0":
        return _png(data, max_pixels)
    if data[:4] in TIFF:
        return _tiff(data, channels, max_pixels)
    if data[:2] in (b"P6", b"P3"):
        return _ppm(data, max_pixels)
    if data[4:8] == b"jP  " and (at := data.find(b"ihdr")) > 0 and data[at + 14] & 0x7F > 7:
        return _jpeg2000(data, at + 4, max_pixels)
    return None


def _fits(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Unread(f"{width}x{height} is more than {max_pixels:,} pixels")


def _library(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise Unread(f"more than 8 bits a colour are read by {name}: {EXTRA}") from None


def _only_array(data: bytes, max_pixels: int) -> np.ndarray:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
    name = "image" if "image" in sizes else next(iter(sizes), "")
    if len(sizes) != 1 and name != "image":
        raise Unread(f"the archive holds {len(sizes)} arrays ({', '.join(list(sizes)[:3])}); name one of them image")
    if sizes[name] > 20 * max_pixels:
        raise Unread(f"an array of {sizes[name]:,} bytes is more than {max_pixels:,} pixels")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        if not isinstance(array := arrays[name], np.ndarray):  # the bytes of any other file
            raise Unread(f"the archive holds no array: {name} is another file")
        return array


def laid_out(array: np.ndarray, channels: int) -> Deep:
    """HW, HWC or CHW as HWC: the axis of `channels` entries holds the bands, the last one if both outer axes might."""
    if array.ndim == 2:
        return Deep(array[:, :, None])
    if array.ndim != 3 or not array.size:
        raise Unread(f"an array of shape {array.shape} is not HW, HWC or CHW")
    last = array.shape[2] == channels or (array.shape[0] != channels and array.shape[2] <= array.shape[0])
    if channels in (1, 3) and min(array.shape) > MOST_BANDS:
        bands, are = array.shape[2 if last else 0], "are" if channels > 1 else "is"
        raise Unread(
            f"{bands} channels where {channels} {are} wanted, in an array of shape {array.shape}; many gray images "
            "need an axis more: np.savez(FILE, images=array[..., None])"
        )
    return Deep(array if last else array.transpose(1, 2, 0))


def _bands_last(array: np.ndarray) -> np.ndarray:
    return array[:, :, None] if array.ndim == 2 else array


def _jpeg2000(data: bytes, header: int, max_pixels: int) -> Deep:
    """More than 8 bits a colour. The header's box holds height, width and the number of bands (15444-1, I.5.3.1)."""
    height, width = (int.from_bytes(data[at : at + 4]) for at in (header, header + 4))
    _fits(width, height, max_pixels)
    values = _bands_last(_library("imagecodecs").jpeg2k_decode(data))
    return Deep(values, int(values.shape[2] in (2, 4)))


def _png(data: bytes, max_pixels: int) -> Deep:
    """16-bit colours, or gray with alpha, of which Pillow keeps the high byte."""
    import torch

    warnings.filterwarnings("ignore", message="The image decoding and encoding", category=DeprecationWarning)
    from torchvision.io import ImageReadMode, decode_png

    _fits(int.from_bytes(data[16:20]), int.from_bytes(data[20:24]), max_pixels)
    pixels = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return Deep(pixels.permute(1, 2, 0).numpy(), int(len(pixels) in (2, 4)))


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
    _fits(width, height, max_pixels)
    if data[:2] == b"P3":  # as text
        words = re.sub(rb"#[^\n]*", b"", data[at:]).split()[: width * height * 3]
        values = np.array(words).astype(np.int64).reshape(height, width, 3)
    else:
        values = np.frombuffer(data, ">u2", width * height * 3, at).reshape(height, width, 3)
    return Deep(np.rint(values.astype(np.float64) * (65535 / most)).astype(np.uint16))


def _tiff(data: bytes, channels: int, max_pixels: int) -> Deep | None:
    try:
        import tifffile
    except ImportError:
        return None  # Pillow reads one band of any depth, and `decoding` refuses what it would cut
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        samples, kind = int(page.samplesperpixel), int(page.photometric)
        _fits(page.imagewidth, page.imagelength, max_pixels)
        tag = page.tags.get("Orientation")
        turned = int(tag.value) if tag is not None else 1
        _check_meaning(page, channels)
        if samples == 1 and (bands := _as_pages(file, channels)) is not None:
            return Deep(upright(bands, turned))
        signed = page.dtype is not None and page.dtype.kind not in "ub"
        # gray and palettes are of one band for Pillow, which passes over what else a palette has
        known = samples == 1 or kind == PALETTE or (samples in (3, 4) and kind > BLACK)
        known &= not (_is_planar(page) and tuple(page.extrasamples)[:1] == (0,))
        if page.bitspersample <= 8 and not signed and known and channels in (1, 3):
            return None  # gray, palette, colour with or without a fourth band: Pillow knows their colours
        try:
            values = np.asarray(page.asarray())
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            if samples == 1:
                return None
            raise Unread(f"its compression, {page.compression.name}, is read by imagecodecs: {EXTRA}") from None
        values = values.transpose(1, 2, 0) if page.axes.startswith("S") else _bands_last(values)
        values = _in_gray_or_rgb(values, page, channels)
        colour, alpha = kind == 2, tuple(page.extrasamples)[:1] in ((1,), (2,))
        cmyk = kind == SEPARATED and channels not in (1, 3)
        extra = samples - 4 if cmyk else int((colour and samples == 4) or (not colour and samples == 2 and alpha))
        return Deep(upright(values, turned), max(extra, 0))


def misread_by_pillow(data: bytes) -> bool:
    """Whether it is a TIFF with a plane for each band of which Pillow makes noise: of more than 8 bits, or CIELAB."""
    if data[:4] not in TIFF:
        return False
    try:
        import tifffile

        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            return _is_planar(page) and (page.bitspersample > 8 or page.photometric == LAB)
    except Exception:  # no library, or a damaged file: the reader says so
        return False


def _is_planar(page: Any) -> bool:
    return bool(page.samplesperpixel > 1 and page.planarconfig == 2)


def _check_meaning(page: Any, channels: int) -> None:
    """Raise Unread for a TIFF whose numbers are neither gray nor of colours that Pillow or `_in_gray_or_rgb` knows."""
    kind, samples = int(page.photometric), int(page.samplesperpixel)
    if samples == 1 and kind in (WHITE, BLACK) and "PhotometricInterpretation" not in page.tags:
        raise Unread("a TIFF that does not say whether its lowest value is black or white: save it anew")
    plain = page.bitspersample <= 8 and page.dtype is not None and page.dtype.kind in "ub" and not _is_planar(page)
    if kind not in UNCONVERTED or (plain and kind in (YCBCR, LAB) and channels in (1, 3)):
        return
    if kind == YCBCR and page.compression.name == "JPEG" and not _is_planar(page) and not page.extrasamples:
        return  # tifffile's JPEG decoder gives RGB
    how = f"{page.bitspersample}-bit {'planar ' * _is_planar(page)}{UNCONVERTED[kind]}"
    raise Unread(f"a TIFF of {how}, which is not converted here: save it as RGB")


def _in_gray_or_rgb(values: np.ndarray, page: Any, channels: int) -> np.ndarray:
    """Values HWC of a TIFF as gray from black to white or as RGB; other numbers of bands are as they are stored."""
    kind, samples = int(page.photometric), values.shape[2]
    if kind == WHITE and "PhotometricInterpretation" in page.tags:
        return _from_black(values, page)
    if kind == PALETTE:
        table = np.asarray(page.colormap)
        if samples != 1 or values.dtype.kind != "u":
            raise Unread(f"a TIFF of a palette with {samples} bands of type {values.dtype}: save it as RGB")
        if int(values.max()) >= table.shape[1]:
            raise Unread(f"a TIFF with entry {int(values.max())} of a palette of {table.shape[1]} colours")
        return table[:, values[:, :, 0]].transpose(1, 2, 0)
    if kind == SEPARATED and channels in (1, 3):
        return _from_inks(values, page)
    return values


def _from_black(values: np.ndarray, page: Any) -> np.ndarray:
    """Gray of which 0 is white, turned round as Pillow does it for 8 bits; alpha behind it stays."""
    alpha = tuple(page.extrasamples)[:1] in ((1,), (2,))
    if values.shape[2] > 1 + alpha:
        raise Unread(f"a TIFF of {values.shape[2]} bands whose lowest value is white: save it with MinIsBlack")
    if values.dtype.kind not in "ub":
        raise Unread(f"a TIFF of {values.dtype} whose lowest value is white, so that none is black: save it anew")
    values = values.copy()
    gray = values[:, :, 0]
    values[:, :, 0] = ~gray if gray.dtype == np.bool_ else gray.dtype.type(2 ** int(page.bitspersample) - 1) - gray
    return values


def _from_inks(values: np.ndarray, page: Any) -> np.ndarray:
    """CMYK as RGB by the rule by which Pillow converts 8 bits: (1 - C)(1 - K)."""
    inks = page.tags.get("InkSet")
    if values.shape[2] < 4 or values.dtype.kind != "u" or (inks is not None and inks.value != 1):
        raise Unread(f"a TIFF of {values.shape[2]} inks of type {values.dtype}, and no CMYK: save it as RGB")
    white = 2 ** int(page.bitspersample) - 1
    ink = values[:, :, :4].astype(np.float64)
    return np.rint((white - ink[:, :, :3]) * (white - ink[:, :, 3:]) / white).astype(values.dtype)


def _as_pages(file: Any, channels: int) -> np.ndarray | None:
    """Pages that are the bands of one picture: as many as are wanted, all of one size. None where they are not.

    Pages of a palette are pictures of their own: their values are numbers of colours.
    """
    if channels == 1 or len(file.pages) != channels or any(page.photometric > BLACK for page in file.pages):
        return None
    pages = [page.asarray() for page in file.pages]
    if len({page.shape for page in pages}) != 1 or pages[0].ndim != 2:
        return None
    bands = [_in_gray_or_rgb(values[:, :, None], page, 1) for values, page in zip(pages, file.pages, strict=True)]
    return np.concatenate(bands, axis=2)


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image.swapaxes(0, 1)[:, ::-1],
    7: lambda image: image.swapaxes(0, 1)[::-1, ::-1],
    8: lambda image: image.swapaxes(0, 1)[::-1],
}
"""What EXIF's orientation asks for, by its number."""


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image HWC as EXIF's orientation says it is to be seen."""
    return TURNS[orientation](image) if orientation in TURNS else image


__all__ = ["EXTRA", "Deep", "Unread", "laid_out", "misread_by_pillow", "read_deep", "upright"]
