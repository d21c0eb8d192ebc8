"""Bytes or arrays of any kind become uint8 pixels [C, H, W], or a BadImage with one reason. Nothing here is random."""

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Num, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from remask.errors import UserError
from remask.files.bounds import MOST_PIXELS, more_than_coded
from remask.files.memory import no_memory
from remask.images.deep import EXTRA, Deep, Unread, misread_by_pillow, read_deep
from remask.images.heif import NoHeifReader, heif_formats, holds_heif
from remask.images.jpeg import JpegHeader, jpeg_header, too_many_scans
from remask.images.levels import RAW, Levels, luma
from remask.images.shortage import claims_too_much, shortage
from remask.images.tiff import TIFF, WHITE, missing_strips

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "JPEG2000", "AVIF")
"""The formats Pillow may try (JPEG includes MPO). Its others are no images or, as EPS does, start programs."""

UNBOUNDED = ("GIF", "WEBP", "JPEG2000", "AVIF", "HEIF")
"""Formats in which a few bytes may stand for any number of pixels."""


class BadImage(Exception):  # noqa: N818  (a fact about an image, not a fault of the program)
    """One image that cannot be used; the message is one line and says why."""


Reduction = Callable[[int, int], int]
"""Height and width of an image -> the factor by which decoding may divide both sides: 1, 2, 4 or 8."""


def decode(
    data: bytes | np.ndarray,
    channels: int = 3,
    *,
    max_pixels: int = MOST_PIXELS,
    reduction: Reduction | None = None,
    levels: Levels | None = RAW,
) -> Num[Tensor, "C H W"]:
    """Pixels of an encoded image, or of an array HW or HWC, with `channels` bands.

    Encoded: turned as EXIF says, first frame or page, CMYK and palette as Pillow converts them, alpha dropped unless
    `channels` counts it. Gray is repeated to 3 channels, RGB becomes luma for 1; any other number of bands must be the
    image's own.

    levels   8-bit images give uint8, all others float32 with their stored values. With a range, 16 bits give
             uint16, which networks scale. None: everything becomes uint8: 16 bits keep their high byte, 32-bit integers
             beyond 16 bits and floats are scaled from their own minimum..maximum; of arrays, floats are 0..1

    The size is read from the header first: an image of more than `max_pixels` is refused before a pixel is decoded,
    and one within it takes at most 24 bytes a pixel while it is decoded (2.4 GB at the default); see `files.bounds`.

    A JPEG that EXIF does not turn is decoded at the scale that `reduction` allows, if one is given: the inverse cosine
    transform then makes 4, 2 or 1 pixels of 8.

    Raises BadImage, and nothing else, for any fault of the data, NaN and infinite values included; UserError where the
    memory does not suffice for a good image.
    """
    try:
        image = _decoded(data, channels, max_pixels, reduction, levels)
        return image if levels is None else levels.values(image)
    except (MemoryError, RuntimeError) as error:
        if not no_memory(error):
            raise
    if claims := claims_too_much(data):
        raise BadImage(claims)
    raise UserError(shortage(data))


def _decoded(
    data: bytes | np.ndarray, channels: int, max_pixels: int, reduction: Reduction | None, levels: Levels | None
) -> Num[Tensor, "C H W"]:
    if isinstance(data, np.ndarray):
        return _from_array(data, channels, levels)
    if not data:
        raise BadImage("the file is empty")
    header = jpeg_header(data)
    if header is not None:
        _check_size(header.width, header.height, max_pixels)
        if slow := too_many_scans(data, header):
            raise BadImage(slow)
        if header.bits == 8 and header.components in (1, 3):
            if reduction and (by := reduction(header.height, header.width)) > 1:
                with contextlib.suppress(Exception):  # decoding at full size, below, reports the fault
                    if (small := _decode_reduced(data, header, by, channels)) is not None:
                        return small
            try:
                return _with_channels(_decode_jpeg(data, header.components), channels)
            except (RuntimeError, ImportError):
                pass  # Pillow decodes what torchvision refuses, or reports the fault
    return _decode_other(data, channels, max_pixels, levels)


def _decode_jpeg(data: bytes, components: int) -> UInt8[Tensor, "C H W"]:
    # torchvision 0.29 deprecates its decoders and names no release that drops them: Pillow, which gives the same
    # pixels, is there for that day
    warnings.filterwarnings("ignore", message="The image decoding and encoding", category=DeprecationWarning)
    from torchvision.io import ImageReadMode, decode_jpeg

    mode = ImageReadMode.RGB if components == 3 else ImageReadMode.GRAY
    # a copy, since a tensor over immutable bytes would be a writable one
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode, apply_exif_orientation=True)


def _decode_reduced(data: bytes, header: JpegHeader, by: int, channels: int) -> UInt8[Tensor, "C h w"] | None:
    """A JPEG with both sides divided by `by`, rounded up; None for one that has to be turned."""
    if b"Exif\0\0" in data:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                return None
    if header.components == channels == 3:
        with contextlib.suppress(ImportError):  # Pillow gives the same pixels, in 1.5 times the time
            from simplejpeg import decode_jpeg

            height, width = -(-header.height // by), -(-header.width // by)
            pixels = decode_jpeg(data, min_height=height, min_width=width, min_factor=1)
            return torch.from_numpy(pixels).permute(2, 0, 1)
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.draft(None, (max(1, image.width // by), max(1, image.height // by)))  # the mode stays the file's
        return _from_pillow(image, channels, None)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadImage(f"{width}x{height} is more than {max_pixels:,} pixels")


def _decode_other(data: bytes, channels: int, max_pixels: int, levels: Levels | None) -> Num[Tensor, "C H W"]:
    """Decode any image but a plain JPEG: with Pillow, or with `deep` where Pillow would cut to 8 bits or refuse."""
    # Not catch_warnings: it swaps the filters of the whole process and images are decoded in a thread as well.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    Image.init()  # loads all plugins: Image.open would not find every format of FORMATS
    try:
        if (levels is not None or misread_by_pillow(data)) and (
            found := read_deep(data, channels, max_pixels)
        ) is not None:
            return _from_deep(found, channels, levels)
        with Image.open(io.BytesIO(data), formats=heif_formats(data, FORMATS)) as image:
            _check_size(image.width, image.height, max_pixels)
            if why := missing_strips(image) or (image.format in UNBOUNDED and more_than_coded(*image.size, len(data))):
                raise BadImage(why)
            image.load()
            _turn_upright(image)
            return _from_pillow(image, channels, levels)
    except BadImage:
        raise
    except (Unread, NoHeifReader) as error:
        raise BadImage(str(error)) from None
    except UnidentifiedImageError:
        if holds_heif(data):
            raise BadImage("a damaged HEIC picture") from None
        if levels is None and (found := _tried(data, channels, max_pixels)) is not None:
            return _from_deep(found, channels, None)
        raise BadImage(_unknown(data)) from None
    except Image.DecompressionBombError:
        raise BadImage(f"more than {max_pixels:,} pixels") from None
    except Exception as error:  # Pillow's plugins raise nearly everything on broken data
        if no_memory(error):
            raise MemoryError from None
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error


def _tried(data: bytes, channels: int, max_pixels: int) -> Deep | None:
    """An image of a format that Pillow does not know, read by `deep`; None if `deep` does not know it either."""
    try:
        return read_deep(data, channels, max_pixels)
    except Unread as error:
        raise BadImage(str(error)) from None
    except MemoryError:
        raise
    except Exception:  # whatever a library raises on it
        return None


def _unknown(data: bytes) -> str:
    if data[:4] in TIFF:
        return f"a TIFF that Pillow does not read (several bands, or deep ones): {EXTRA}"
    return f"not a picture in a known format: it begins with {data[:12]!r}"


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:  # it would be another image
        raise
    except Exception:  # damaged EXIF says nothing about the pixels
        return


def _from_pillow(image: Image.Image, channels: int, levels: Levels | None) -> Num[Tensor, "C H W"]:
    tags: Any = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    white_first = tags.get(262) == WHITE
    if image.mode.startswith("I;16"):
        values = np.array(image).astype(np.uint16)  # Pillow inverts 8-bit values whose 0 is white, but not 16-bit ones
        return _from_array(65535 - values if white_first else values, channels, levels)
    if image.mode in ("I", "F") and white_first:
        raise BadImage("a TIFF of floats or signed numbers whose lowest value is white: save it anew")
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        if image.mode == "I" and values.min() >= 0 and values.max() <= 65535:
            return _from_array(values.astype(np.uint16), channels, levels)
        return _from_array(_stretched(values.astype(np.float32)) if levels is None else values, channels, levels)
    if (levels is not None or tags.get(284) == 2) and max(tags.get(258, (8,))) > 8:
        raise BadImage(f"colours of more than 8 bits, which Pillow would cut, are read by tifffile: {EXTRA}")
    own = len(image.getbands())
    mode = {1: "L", 3: "RGB"}.get(channels, image.mode if own == channels else "")
    if not mode:
        raise _other_channels(own, channels)
    pixels = torch.from_numpy(np.array(image if image.mode == mode else image.convert(mode)))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def _stretched(values: np.ndarray) -> np.ndarray:
    """Minimum..maximum of the finite float32 values to 0..255, in place; other values and a constant image are 0."""
    finite = np.isfinite(values)
    if not finite.any():
        raise BadImage("no pixel has a finite value")
    values[~finite] = low = values.min(where=finite, initial=np.inf)
    values -= low
    values *= np.float32(255) / (values.max() or np.float32(1))
    return np.rint(values, out=values).astype(np.uint8)


def _from_deep(found: Deep, channels: int, levels: Levels | None) -> Num[Tensor, "C H W"]:
    values, bands = found.values, found.values.shape[2]
    if bands != channels and found.extra:
        values = values[:, :, : bands - found.extra]
    return _from_array(values, channels, levels)


def _from_array(array: np.ndarray, channels: int, levels: Levels | None) -> Num[Tensor, "C H W"]:
    if array.ndim not in (2, 3) or array.size == 0:
        raise BadImage(f"an array of shape {array.shape} is not HW or HWC")
    image = torch.from_numpy(_eight_bits(array) if levels is None else _as_it_is(array, levels))
    return _with_channels(image[None] if image.ndim == 2 else image.permute(2, 0, 1), channels)


def _with_channels(image: Num[Tensor, "c H W"], channels: int) -> Num[Tensor, "C H W"]:
    if image.shape[0] == channels:
        return image
    if image.shape[0] == 1 and channels == 3:
        return image.repeat(3, 1, 1)
    if image.shape[0] == 3 and channels == 1:
        return luma(image)
    raise _other_channels(image.shape[0], channels)


def _other_channels(found: int, wanted: int) -> BadImage:
    return BadImage(f"{found} channel{'s' * (found > 1)} where {wanted} {'are' if wanted > 1 else 'is'} wanted")


def _as_it_is(array: np.ndarray, levels: Levels) -> np.ndarray:
    """The stored values as uint8, uint16 or float32; only integers of 32 bits and more are rounded.

    Under the full range, integers of other types are scaled to 0..1 by the range of their type. Raises BadImage for
    NaN and infinite values.
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if array.dtype == np.bool_ or (kind == "u" and size == 1):
        return _eight_bits(array)
    if kind == "u" and size == 2:  # either byte order
        return array.astype(np.uint16)
    if kind in "iu":
        if levels.low is not None:
            return array.astype(np.float32)
        ends = np.iinfo(array.dtype)
        return ((array.astype(np.float64) - ends.min) / (float(ends.max) - ends.min)).astype(np.float32)
    if kind != "f":
        raise BadImage(f"pixels of type {array.dtype}; integers, bool and floats are read")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are counted below
        values = array.astype(np.float32)
    if count := values.size - int(np.isfinite(values).sum()):
        raise BadImage(f"{count:,} of {values.size:,} values are NaN or infinite")
    return values


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array if array.flags.writeable and min(array.strides) >= 0 else array.copy()
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # either byte order
        return (array >> 8).astype(np.uint8)
    if array.dtype.kind == "f":
        clean = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        if clean.min() < 0 or clean.max() > 1:
            raise BadImage(f"float pixels lie in {clean.min():g}..{clean.max():g}, not in 0..1")
        return np.rint(clean * 255).astype(np.uint8)
    raise BadImage(f"pixels of type {array.dtype}; uint8, uint16, bool or float 0..1 are read")
