"""The header of an image, read without decoding: format, colours, bits, bands, and what decoding leaves out."""

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from remask.images.decoding import FORMATS
from remask.images.heif import heif_formats
from remask.images.tiff import TIFF


class Stored(NamedTuple):
    """An image's header.

    kind       format, mode and bits in words
    bands      without those left out
    left_out   what decoding to the wanted channels ignores, in words
    frames     or pages
    """

    kind: str
    bands: int
    left_out: tuple[str, ...] = ()
    frames: int = 1


def stored(data: bytes | np.ndarray, channels: int = 3) -> Stored:
    """Format, mode and bits, as in "JPEG RGB, 8 bits", and the number of bands; pixels are not decoded."""
    if isinstance(data, np.ndarray):
        bands = 1 if data.ndim == 2 else data.shape[2]
        return Stored(f"array of {bands} channel{'s' * (bands > 1)}, {data.dtype}", bands)
    try:
        if data[:4] in TIFF and (header := _tiff(data, channels)) is not None:
            return header
        if data[:6] == b"\x93NUMPY" or data[:4] == b"PK\x03\x04":
            return _array(data, channels)
        with Image.open(io.BytesIO(data), formats=heif_formats(data, FORMATS)) as image:
            return _by_pillow(image, data, channels)
    except Exception:  # decoding may read it all the same, by torchvision, or gives the reason
        return Stored("unknown to Pillow", 3)


def _by_pillow(image: Image.Image, data: bytes, channels: int) -> Stored:
    bits = {"1": 1, "I": 32, "F": 32}.get(image.mode, 16 if image.mode.startswith("I;16") else 8)
    mode, bands = image.mode.partition(";")[0], {"P": 3, "PA": 4}.get(image.mode, len(image.getbands()))
    if image.format == "PNG" and data[24:25] == b"\x10" and bits == 8:
        bits, mode = 16, {4: "LA"}.get(data[25], mode)
    alpha = bands in (2, 4) and mode[-1] in "Aa" and channels != bands
    bands = len(mode) if bits == 16 and mode in ("LA", "RGB", "RGBA") else bands
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # an MPO holds other sizes of it
    skipped = ["alpha"] * alpha + ["frames after the first"] * (frames > 1)
    skipped += ["bits beyond 8"] * (image.format in ("AVIF", "HEIF") and _announced(data) > 8)
    return Stored(f"{image.format} {mode}, {bits} bit{'s' * (bits > 1)}", bands - alpha, tuple(skipped), frames)


def _announced(data: bytes) -> int:
    """Bits a colour that the first box of pixel information states (ISO/IEC 23008-12, 6.5.6); 8 where there is none."""
    at = data.find(b"pixi")
    return data[at + 9] if 0 <= at < len(data) - 9 else 8


def _tiff(data: bytes, channels: int) -> Stored | None:
    try:
        import tifffile
    except ImportError:
        return None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        bands, bits, pages = int(page.samplesperpixel), int(page.bitspersample), len(file.pages)
        skipped = []
        if bands == 1 and pages == channels > 1 and page.photometric != 3:
            bands = pages
        elif pages > 1:
            skipped.append("pages after the first")
        extra = tuple(page.extrasamples)
        if extra and channels != bands and bands - len(extra) in (1, 3):
            skipped.append("alpha" if extra[0] in (1, 2) else f"band {bands - len(extra) + 1}")
        number = "float" if page.dtype is not None and page.dtype.kind == "f" else "bit" + "s" * (bits > 1)
        shown = {1: "gray", 3: "RGB"}.get(bands - len(extra), f"{bands} bands") + (
            "A" if skipped[-1:] == ["alpha"] else ""
        )
        shown = "palette" if page.photometric == 3 else f"{bands} bands" if extra and not skipped else shown
        colours = 3 if page.photometric == 3 else bands - len(extra) * bool(skipped and extra)
        frames = pages if "pages after the first" in skipped else 1
        return Stored(f"TIFF {shown}, {bits} {number}", colours, tuple(skipped), frames)


def _array(data: bytes, channels: int) -> Stored:
    from remask.images.deep import read_deep

    deep = read_deep(data, channels, 100_000_000)
    assert deep is not None
    kind = "npy" if data[:6] == b"\x93NUMPY" else "npz"
    bands = deep.values.shape[2]
    return Stored(f"{kind} of {bands} band{'s' * (bands > 1)}, {deep.values.dtype}", bands)


__all__ = ["Stored", "stored"]
