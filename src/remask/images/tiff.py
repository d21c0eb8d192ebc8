"""TIFFs that Pillow does not read as they are, read by tifffile, and the meaning of their numbers.

Gray whose lowest value is white, palettes and CMYK are converted as those of 8 bits are; other colours are refused.
"""

import io
import math
from typing import Any

import numpy as np

from remask.images.arrays import EXTRA, Deep, Unread, bands_last, fits, upright

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WHITE, BLACK, PALETTE, SEPARATED, YCBCR, LAB = 0, 1, 3, 5, 6, 8
"""Values of TIFF's PhotometricInterpretation: gray whose lowest value is white or black, and kinds of colour."""
UNCONVERTED = {
    4: "transparency mask", YCBCR: "YCbCr", LAB: "CIELAB", 9: "ICC LAB", 10: "ITU LAB", 32803: "camera mosaic (CFA)",
    32844: "LogL", 32845: "LogLuv", 34892: "linear raw data of a camera",
}  # fmt: skip
"""Interpretations that nothing here converts to gray or RGB: unconverted numbers would be another image."""


def read_tiff(data: bytes, channels: int, max_pixels: int) -> Deep | None:
    """A TIFF that Pillow would cut to 8 bits or refuse; None for one that it reads whole. Raises Unread."""
    try:
        import tifffile
    except ImportError:
        return None  # Pillow reads one band of any depth, and `decoding` refuses what it would cut
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        samples, kind = int(page.samplesperpixel), int(page.photometric)
        fits(page.imagewidth, page.imagelength, max_pixels)
        tag = page.tags.get("Orientation")
        turned = int(tag.value) if tag is not None else 1
        _check_meaning(page, channels)
        if samples == 1 and (bands := _as_pages(file, channels)) is not None:
            return Deep(upright(bands, turned))
        signed = page.dtype is not None and page.dtype.kind not in "ub"
        # for Pillow gray and palettes have one band: it ignores the other bands of a palette
        known = samples == 1 or kind == PALETTE or (samples in (3, 4) and kind > BLACK)
        known &= not (_is_planar(page) and tuple(page.extrasamples)[:1] == (0,))
        if page.bitspersample <= 8 and not signed and known and channels in (1, 3):
            return None  # gray, palette, colour with or without a fourth band: Pillow knows their colours
        if not page.is_contiguous and len(page.dataoffsets) < (expected := math.prod(page.chunked)):
            raise Unread(
                f"it names {len(page.dataoffsets):,} of its {expected:,} strips or tiles: it is damaged or cut off"
            )
        try:
            values = np.asarray(page.asarray())
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            if samples == 1:
                return None
            raise Unread(f"its compression, {page.compression.name}, is read by imagecodecs: {EXTRA}") from None
        values = values.transpose(1, 2, 0) if page.axes.startswith("S") else bands_last(values)
        values = _in_gray_or_rgb(values, page, channels)
        colour, alpha = kind == 2, tuple(page.extrasamples)[:1] in ((1,), (2,))
        cmyk = kind == SEPARATED and channels not in (1, 3)
        extra = samples - 4 if cmyk else int((colour and samples == 4) or (not colour and samples == 2 and alpha))
        return Deep(upright(values, turned), max(extra, 0))


def misread_planes(data: bytes) -> bool:
    """Whether Pillow decodes a file to noise: a TIFF with a plane for each band, of more than 8 bits or CIELAB."""
    try:
        import tifffile

        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            return _is_planar(page) and (page.bitspersample > 8 or page.photometric == LAB)
    except MemoryError:
        raise
    except Exception:  # no library, or a damaged file: the reader reports it
        return False


def missing_strips(image: Any) -> str | None:
    """Why a TIFF that Pillow has opened is not decoded: it names too few strips or tiles for its size. Pillow would
    fill what is missing with black, however many pixels a small file claims.

    Only uncompressed ones are looked at, whose strips Pillow lists one by one; libtiff refuses the others itself.
    """
    if image.format != "TIFF" or not image.tile or any(strip[0] != "raw" for strip in image.tile):
        return None
    width, height = image.size
    planes = len(image.getbands()) if image.tag_v2.get(284) == 2 else 1
    covered = sum((right - left) * (lower - upper) for _, (left, upper, right, lower), *_ in image.tile)
    if covered >= planes * width * height:
        return None
    return f"its strips hold {covered // planes:,} of its {width}x{height} pixels: it is damaged or cut off"


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
    description = f"{page.bitspersample}-bit {'planar ' * _is_planar(page)}{UNCONVERTED[kind]}"
    raise Unread(f"a TIFF of {description}, which is not converted here: save it as RGB")


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
    """Gray whose 0 is white, inverted as Pillow does it for 8 bits; a band of alpha stays as it is."""
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
    """HWC of pages that are the bands of one image: `channels` of them, all of one size; None for other pages.

    Pages with a palette are images of their own: their values are numbers of colours.
    """
    if channels == 1 or len(file.pages) != channels or any(page.photometric > BLACK for page in file.pages):
        return None
    pages = [page.asarray() for page in file.pages]
    if len({page.shape for page in pages}) != 1 or pages[0].ndim != 2:
        return None
    bands = [_in_gray_or_rgb(values[:, :, None], page, 1) for values, page in zip(pages, file.pages, strict=True)]
    return np.concatenate(bands, axis=2)


__all__ = ["TIFF", "WHITE", "misread_planes", "missing_strips", "read_tiff"]
