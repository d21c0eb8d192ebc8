"""Pictures as this network was trained on them: `read_picture(path, config)` gives what it takes.

Decoding (EXIF, alpha, gray, 16 bits, any number of bands), the crop and the range are those of training.
Needs numpy, Pillow, torch and torchvision; TIFFs of several bands or compressed ones need tifffile and imagecodecs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

FULL_RANGE = {torch.uint8: (0.0, 255.0), torch.uint16: (0.0, 65535.0)}
"""Black and white of integer types; floats are 0..1."""


@dataclass(frozen=True)
class Levels:
    """Values that are black and white in pictures; without them each type's own range, floats being 0..1.

    8-bit pictures are 0..255 under every rule whose numbers go beyond that.
    """

    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, rule: str | Sequence[float] | None) -> "Levels | None":
        """What `data.range` says: "full", two numbers, or "byte" and None for pictures that become 8 bits (None)."""
        if rule is None or rule == "byte":
            return None
        return cls() if isinstance(rule, str) else cls(float(rule[0]), float(rule[1]))

    @property
    def config(self) -> str | list[float]:
        """For JSON: "full" or two numbers."""
        return "full" if self.low is None or self.high is None else [self.low, self.high]

    def values(self, image: Tensor) -> Tensor:
        """An 8-bit image as uint16 where the numbers are meant for 8 bits too: they lie in 0..255 and are not both.

        Values as they are stored (`RAW`) are floats where 8 bits do not hold them: torch computes little with uint16.
        """
        if self.low == -math.inf and image.dtype == torch.uint16:
            return image.float()
        if image.dtype != torch.uint8 or self.low is None or self.high is None:
            return image
        meant = self.low >= 0 and self.high <= 255 and (self.low, self.high) != FULL_RANGE[torch.uint8]
        return image.to(torch.uint16) if meant else image

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """Black and white among values of a type."""
        if dtype == torch.uint8 or self.low is None or self.high is None:
            return FULL_RANGE.get(dtype, (0.0, 1.0))
        return self.low, self.high

    def unit(self, images: Tensor) -> Tensor:
        """Values as float32 in units in which black is 0 and white is 1."""
        low, high = self.bounds(images.dtype)
        return (images.float() - low) / (high - low)

    def affine(self, dtype: torch.dtype, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Shift and scale [C, 1, 1] by which values of a type are normalised: (value - shift) · scale."""
        (low, high), one = self.bounds(dtype), (-1, 1, 1)
        span = high - low
        return torch.tensor(mean).view(one) * span + low, 1 / (torch.tensor(std).view(one) * span)

    def normalised(self, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Values [..., C, H, W] as a network takes them: of deviation 1 round 0, in float32."""
        shift, scale = self.affine(images.dtype, mean, std)
        return (images.float() - shift) * scale

    def beyond(self, image: Tensor) -> str | None:
        """Which values lie outside the range, in words; None where none does."""
        if image.dtype == torch.uint8:
            return None
        low, high = self.bounds(image.dtype)
        least, most = (float(value) for value in torch.aminmax(image.float()))
        if low <= least and most <= high:
            return None
        return f"values reach from {least:g} to {most:g}, beyond {low:g} to {high:g} of data.range"


FULL = Levels()


class Scaling(NamedTuple):
    """How the pictures of a run are read and normalised; mean and std per channel are of values in 0..1.

    deep   whether 8 bits do not hold the pictures of the set
    """

    levels: Levels
    mean: Sequence[float]
    std: Sequence[float]
    deep: bool = False

    def normalised(self, images: Tensor) -> Tensor:
        """Values [..., C, H, W] of any depth as a network takes them, float32."""
        return self.levels.normalised(images, self.mean, self.std)

    def ready(self, images: Tensor) -> Tensor:
        """A batch as every network and target takes it: uint8, or floats that are normalised."""
        return self.normalised(images) if images.dtype == torch.uint16 else images

    def shades(self, image: Tensor) -> Tensor:
        """An image in 0..255, black to white: floats where the set is deep, which keeps every level, else uint8."""
        if self.deep or image.dtype == torch.uint8:
            return self.levels.unit(image) * 255 if self.deep else image
        return (self.levels.unit(image) * 255).round().clamp(0, 255).to(torch.uint8)

    def of_shades(self, image: Tensor) -> Tensor:
        """What a network takes for an image in 0..255: uint8 as it is, floats normalised."""
        return Levels(0, 255).normalised(image, self.mean, self.std) if image.is_floating_point() else image

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """Images of one size together: uint8 or uint16 where all are, which a network scales; else normalised."""
        if {image.dtype for image in images} in ({torch.uint8}, {torch.uint16}):
            return torch.stack(list(images))
        return torch.stack([self.normalised(image) for image in images])


def levels_of(config: Any) -> Levels | None:
    """The levels that a JSON file states, the full range where it states none; None for 8 bits."""
    return FULL if config is None else Levels.of(config)


def rule_of(levels: Levels | None) -> str | list[float]:
    """What `levels_of` reads."""
    return "byte" if levels is None else levels.config


class Ready(Scaling):
    """Of batches whose images are made ready one by one: they are read with the values that they have, and stacked."""

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(images))


RAW = Levels(-math.inf, math.inf)
"""Values as they are stored."""

import io
import warnings
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
EXTRA = "pip install 'remask[data]'"


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
    if data[:2] == b"P6":
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
        return arrays[name]


def laid_out(array: np.ndarray, channels: int) -> Deep:
    """HW, HWC or CHW as HWC: the axis of `channels` entries holds the bands, the last one if both outer axes might."""
    if array.ndim == 2:
        return Deep(array[:, :, None])
    if array.ndim != 3 or not array.size:
        raise Unread(f"an array of shape {array.shape} is not HW, HWC or CHW")
    last = array.shape[2] == channels or (array.shape[0] != channels and array.shape[2] <= array.shape[0])
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
    values = np.frombuffer(data, ">u2", width * height * 3, at).reshape(height, width, 3)
    return Deep(np.rint(values.astype(np.float64) * (65535 / most)).astype(np.uint16))


def _tiff(data: bytes, channels: int, max_pixels: int) -> Deep | None:
    try:
        import tifffile
    except ImportError:
        return None  # Pillow reads one band of any depth, and `decoding` refuses what it would cut
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        samples = int(page.samplesperpixel)
        _fits(page.imagewidth, page.imagelength, max_pixels)
        if samples == 1 and (bands := _as_pages(file, channels)) is not None:
            return Deep(bands)
        signed = page.dtype is not None and page.dtype.kind not in "ub"
        if page.bitspersample <= 8 and not signed and samples in (1, 3, 4) and channels in (1, 3):
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
        colour, alpha = page.photometric == 2, tuple(page.extrasamples)[:1] in ((1,), (2,))
        tag = page.tags.get("Orientation")
        return Deep(
            upright(values, int(tag.value) if tag is not None else 1),
            int((colour and samples == 4) or (not colour and samples == 2 and alpha)),
        )


def _as_pages(file: Any, channels: int) -> np.ndarray | None:
    """Pages that are the bands of one picture: as many as are wanted, all of one size. None where they are not."""
    if channels == 1 or len(file.pages) != channels:
        return None
    pages = [page.asarray() for page in file.pages]
    return np.stack(pages, axis=2) if len({page.shape for page in pages}) == 1 and pages[0].ndim == 2 else None


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

import functools
import importlib.util

EXTENSIONS = (".heic", ".heif", ".hif")
REASON = "HEIC pictures, which need pip install 'remask[heic]'"
"""Why they are left out where pillow-heif is missing."""

_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"))
"""Major brands of HEIF files (ISO/IEC 23008-12, annex B); AVIF has its own, which Pillow reads."""


class NoHeifReader(Exception):  # noqa: N818  (a fact about this machine)
    """pillow-heif is not installed."""


def is_heif(path: str) -> bool:
    """Whether the name says so."""
    return path.lower().endswith(EXTENSIONS)


def holds_heif(data: bytes) -> bool:
    """Whether the content says so, by the brand of its first box. An AVIF may have mif1 as its major brand."""
    end = min(int.from_bytes(data[:4]), 256)
    return data[4:8] == b"ftyp" and data[8:12] in _BRANDS and b"avif" not in data[8:end]


def can_read() -> bool:
    """Whether pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def heif_formats(data: bytes, others: tuple[str, ...]) -> tuple[str, ...]:
    """The formats that Pillow is to try: HEIF for such a picture, else the others. Raises NoHeifReader."""
    if not holds_heif(data):
        return others
    if not can_read():
        raise NoHeifReader("a HEIC picture, which needs pip install 'remask[heic]'")
    _register_heif()
    return ("HEIF",)


@functools.cache
def _register_heif() -> None:
    """Let Pillow open HEIF; once a process. Pictures come as libheif turns them, with an EXIF that says so."""
    import pillow_heif

    pillow_heif.register_heif_opener()

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor


FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "JPEG2000", "AVIF")
"""The formats Pillow may try (JPEG includes MPO). Its others are no pictures or, as EPS does, start programs."""


class BadImage(Exception):  # noqa: N818  (a fact about a picture, not a fault of the program)
    """One picture that cannot be used; the message is one line and says why."""


Reduction = Callable[[int, int], int]
"""Height and width of a picture -> by how much both sides may be divided on the way: 1, 2, 4 or 8."""


def decode(
    data: bytes | np.ndarray,
    channels: int = 3,
    *,
    max_pixels: int = 100_000_000,
    reduction: Reduction | None = None,
    levels: Levels | None = RAW,
) -> Num[Tensor, "C H W"]:
    """Pixels of an encoded picture, or of an array HW or HWC, with `channels` bands.

    Encoded: turned as EXIF says, first frame or page, CMYK and palette as Pillow converts them, alpha dropped unless
    it is wanted. Gray is repeated to 3 channels, RGB becomes luma for 1; other numbers of bands must be the picture's.

    levels   8-bit pictures give uint8, all others float32 with the values that they have. With a range, 16 bits give
             uint16, which networks scale. None: everything becomes uint8: 16 bits keep their high byte, 32-bit integers
             beyond 16 bits and floats are scaled from their own minimum..maximum; of arrays, floats are 0..1

    The size is read from the header first: a picture of more than `max_pixels` is refused before a pixel is decoded,
    and one within it takes at most 20 bytes a pixel and band while it is decoded (2 GB at the default).

    A JPEG that EXIF does not turn is decoded at the scale that `reduction` allows, if one is given: the inverse cosine
    transform then makes 4, 2 or 1 pixels of 8.

    Raises BadImage, and nothing else, for whatever is wrong with the data, values that are no number included.
    """
    image = _decoded(data, channels, max_pixels, reduction, levels)
    return image if levels is None else levels.values(image)


def _decoded(
    data: bytes | np.ndarray, channels: int, max_pixels: int, reduction: Reduction | None, levels: Levels | None
) -> Num[Tensor, "C H W"]:
    if isinstance(data, np.ndarray):
        return _from_array(data, channels, levels)
    if not data:
        raise BadImage("the file is empty")
    header = _jpeg_header(data)
    if header is not None:
        _check_size(header.width, header.height, max_pixels)
        if header.bits == 8 and header.components in (1, 3):
            if reduction and (by := reduction(header.height, header.width)) > 1:
                with contextlib.suppress(Exception):  # the whole path names the fault
                    if (small := _decode_reduced(data, header, by, channels)) is not None:
                        return small
            try:
                return _fitted(_decode_jpeg(data, header.components), channels)
            except (RuntimeError, ImportError):
                pass  # Pillow decodes what torchvision will not, or names the fault
    return _decode_other(data, channels, max_pixels, levels)


class _JpegHeader(NamedTuple):
    bits: int
    height: int
    width: int
    components: int


def _jpeg_header(data: bytes) -> _JpegHeader | None:
    """The frame header (SOF) of a JPEG: ITU T.81, B.2.2. None where there is none."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 10 > len(data):
            return None
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # stuffing, fill and markers without a length
            at += 1 if marker == 0xFF else 2
        elif marker in (0xD9, 0xDA):  # the end, or data before any frame header
            return None
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            return _JpegHeader(data[at + 4], height, width, data[at + 9])
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])


def _decode_jpeg(data: bytes, components: int) -> UInt8[Tensor, "C H W"]:
    # torchvision 0.29 deprecates its decoders and names no release that drops them: Pillow, which gives the same
    # pixels, is there for that day
    warnings.filterwarnings("ignore", message="The image decoding and encoding", category=DeprecationWarning)
    from torchvision.io import ImageReadMode, decode_jpeg

    mode = ImageReadMode.RGB if components == 3 else ImageReadMode.GRAY
    # a copy, since a tensor over immutable bytes would be a writable one
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode, apply_exif_orientation=True)


def _decode_reduced(data: bytes, header: _JpegHeader, by: int, channels: int) -> UInt8[Tensor, "C h w"] | None:
    """A JPEG with both sides divided by `by`, rounded up; None for one that has to be turned."""
    if b"Exif\0\0" in data:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                return None
    if header.components == channels == 3:
        with contextlib.suppress(ImportError):  # Pillow gives the same pixels, in 1.5 times the time
            from simplejpeg import decode_jpeg

            pixels = decode_jpeg(
                data, min_height=-(-header.height // by), min_width=-(-header.width // by), min_factor=1
            )
            return torch.from_numpy(pixels).permute(2, 0, 1)
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.draft(None, (max(1, image.width // by), max(1, image.height // by)))  # the mode stays the file's
        return _from_pillow(image, channels, None)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadImage(f"{width}x{height} is more than {max_pixels:,} pixels")


def _decode_other(data: bytes, channels: int, max_pixels: int, levels: Levels | None) -> Num[Tensor, "C H W"]:
    """What is no plain JPEG: by Pillow, or where Pillow would cut it to 8 bits or refuse it, by `deep`."""
    # Not catch_warnings: it swaps the filters of the whole process and pictures are decoded in a thread as well.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    Image.init()  # formats named in open are not looked for otherwise
    try:
        if levels is not None and (found := read_deep(data, channels, max_pixels)) is not None:
            return _from_deep(found, channels, levels)
        with Image.open(io.BytesIO(data), formats=heif_formats(data, FORMATS)) as image:
            _check_size(image.width, image.height, max_pixels)
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
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error


def _tried(data: bytes, channels: int, max_pixels: int) -> Deep | None:
    """What Pillow does not know, if `deep` does."""
    try:
        return read_deep(data, channels, max_pixels)
    except Unread as error:
        raise BadImage(str(error)) from None
    except Exception:  # whatever a library raises on it
        return None


def _unknown(data: bytes) -> str:
    if data[:4] in TIFF:
        return f"a TIFF that Pillow does not read (several bands, or deep ones): {EXTRA}"
    return f"not a picture in a known format: it begins with {data[:12]!r}"


def _turn_upright(image: Image.Image) -> None:
    with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
        ImageOps.exif_transpose(image, in_place=True)


def _from_pillow(image: Image.Image, channels: int, levels: Levels | None) -> Num[Tensor, "C H W"]:
    if image.mode.startswith("I;16"):
        return _from_array(np.array(image).astype(np.uint16), channels, levels)
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        if image.mode == "I" and values.min() >= 0 and values.max() <= 65535:
            return _from_array(values.astype(np.uint16), channels, levels)
        return _from_array(_stretched(values.astype(np.float32)) if levels is None else values, channels, levels)
    if levels is not None and image.format == "TIFF" and max(image.tag_v2.get(258, (8,))) > 8:  # type: ignore[attr-defined]
        raise BadImage(f"colours of more than 8 bits, which Pillow would cut, are read by tifffile: {EXTRA}")
    own = len(image.getbands())
    mode = {1: "L", 3: "RGB"}.get(channels, image.mode if own == channels else "")
    if not mode:
        raise _other_channels(own, channels)
    pixels = torch.from_numpy(np.array(image if image.mode == mode else image.convert(mode)))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def _stretched(values: np.ndarray) -> np.ndarray:
    """Minimum..maximum of the finite float32 values to 0..255, in place; other values and a constant picture are 0."""
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
    return _fitted(image[None] if image.ndim == 2 else image.permute(2, 0, 1), channels)


def _fitted(image: Num[Tensor, "c H W"], channels: int) -> Num[Tensor, "C H W"]:
    if image.shape[0] == channels:
        return image
    if image.shape[0] == 1 and channels == 3:
        return image.repeat(3, 1, 1)
    if image.shape[0] == 3 and channels == 1:
        return _luma(image)
    raise _other_channels(image.shape[0], channels)


def _other_channels(found: int, wanted: int) -> BadImage:
    return BadImage(f"{found} channel{'s' * (found > 1)} where {wanted} {'are' if wanted > 1 else 'is'} wanted")


def _as_it_is(array: np.ndarray, levels: Levels) -> np.ndarray:
    """The values as uint8, uint16 or float32, none of them changed but for integers of 32 bits and more.

    Under the full range, integers of other types are brought to 0..1 by the range of their type. Raises BadImage for
    values that are no number.
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
    values = array.astype(np.float32)
    if count := values.size - int(np.isfinite(values).sum()):
        raise BadImage(f"{count:,} of {values.size:,} values are NaN or infinite")
    return values


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        shareable = array.flags.writeable and min(array.strides) >= 0
        return array if shareable else array.copy()
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


def _luma(image: Num[Tensor, "3 H W"]) -> Num[Tensor, "1 H W"]:
    """ITU-R 601-2 in 16-bit fixed point, as Pillow rounds it; of floats with the same weights."""
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int64)[:, None, None]
    if image.is_floating_point():
        return (image * (weights / 0x10000)).sum(0, keepdim=True)
    return ((image.long() * weights).sum(0, keepdim=True) + 0x8000 >> 16).to(image.dtype)

CROP = 224 / 256
Size = tuple[int, int]


class UserError(Exception):
    pass




import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

@dataclass(frozen=True)
class CentreCrop:
    """Resize so that the crop is `ratio` of the picture's tighter side, then cut the centre: 256 then 224 as usual.

    A picture that has the size already is left as it is: 32x32 sets are evaluated on their own pixels.
    """

    size: Size
    ratio: float = CROP

    def __post_init__(self) -> None:
        _check(self.size)
        if not 0 < self.ratio <= 1:
            raise UserError(f"centre crop ratio {self.ratio}: needs 0 < ratio <= 1")

    def __call__(self, image: Num[Tensor, "C H W"], generator: Generator | None = None) -> Num[Tensor, "C h w"]:
        if tuple(image.shape[-2:]) == self.size:
            return image
        height, width = self.size
        image = _shortened(image, self.size)
        rows, columns = image.shape[-2:]
        tall, wide = round(height / self.ratio), round(width / self.ratio)
        # the tighter side is met exactly, the other follows; rounded down as torchvision does
        if tall * columns >= wide * rows:
            wide = max(tall * columns // rows, width)
        else:
            tall = max(wide * rows // columns, height)
        image = resize(image, (tall, wide))
        top, left = round((tall - height) / 2), round((wide - width) / 2)
        return image[:, top : top + height, left : left + width]


def resize(image: Num[Tensor, "C H W"], size: Size) -> Num[Tensor, "C h w"]:
    """Antialiased bicubic in two passes, each rounded and clamped to uint8 as Pillow does it.

    Deeper images are resized in float32, uint16 rounded and clamped at the end.
    """
    rows, columns = image.shape[-2:]
    if (rows, columns) == tuple(size):
        return image
    if image.dtype == torch.uint16:
        return resize(image.float(), size).round_().clamp_(0, 65535).to(torch.uint16)
    batch = image[None]
    if rows_first(rows, columns, size) and columns != size[1]:
        batch = F.interpolate(batch, size=(size[0], columns), mode="bicubic", antialias=True)
    return F.interpolate(batch, size=size, mode="bicubic", antialias=True)[0]


def rows_first(rows: int, columns: int, size: Size) -> bool:
    """Whether Pillow 13 takes the vertical pass first: where it shrinks much more. torch takes it last.

    The order shows in the clamped overshoot beside sharp edges, by up to 10 levels.
    """
    return rows > size[0] and rows - size[0] > 2 * (columns - size[1])


def _shortened(image: Num[Tensor, "C H W"], size: Size) -> Num[Tensor, "C h w"]:
    """The middle of a very long picture: resizing all of a 20000x16 strip would take gigabytes for one crop."""
    rows, columns = image.shape[-2:]
    aspect = 4 * max(size) / min(size)
    tall, wide = min(rows, math.ceil(columns * aspect)), min(columns, math.ceil(rows * aspect))
    top, left = (rows - tall) // 2, (columns - wide) // 2
    return image[:, top : top + tall, left : left + wide]


def _check(size: Size) -> None:
    if min(size) < 1:
        raise UserError(f"image size {size[0]}x{size[1]}: both sides need at least 1 pixel")

def read_image(path: str, config: dict[str, Any]) -> Tensor:
    """The picture in a file [C, H, W], upright, with the values that it has."""
    with open(path, "rb") as file:
        return decode(file.read(), len(config["mean"]), levels=levels_of(config.get("range")))


def normalised(image: Tensor, config: dict[str, Any]) -> Tensor:
    """Values of any type as the network takes them, float32."""
    return (levels_of(config.get("range")) or FULL).normalised(image, config["mean"], config["std"])


def ready(image: Tensor, config: dict[str, Any]) -> Tensor:
    """A picture as remask's networks take it: 8 and 16 bits as they are, which they scale, floats normalised."""
    return normalised(image, config) if image.is_floating_point() else image


def read_picture(path: str, config: dict[str, Any]) -> Tensor:
    """The picture in a file as the network takes it [1, C, height, width]: its centre, resized and normalised."""
    crop = CentreCrop(tuple(config["image_size"]), config["crop_pct"])
    return normalised(crop(read_image(path, config)), config)[None]
