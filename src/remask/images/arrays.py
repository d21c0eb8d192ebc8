"""Values of images as arrays HWC, from numpy's files too, and the reason for which some are not read.

`decoding` interprets the values; nothing here does.
"""

import io
import math
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

EXTRA = "pip install 'remask[data]'"


MOST_BANDS = 16
"""An array whose shortest axis is longer than this is taken for many gray images, and refused as one image."""


class Unread(Exception):  # noqa: N818  (a fact about an image)
    """Why an image cannot be read, in one line."""


class Deep(NamedTuple):
    """Values HWC; the last `extra` bands are alpha or the like and are dropped where fewer bands are wanted."""

    values: np.ndarray
    extra: int = 0


def fits(width: int, height: int, max_pixels: int) -> None:
    """Raise Unread for an image of more pixels than are allowed."""
    if width * height > max_pixels:
        raise Unread(f"{width}x{height} is more than {max_pixels:,} pixels")


def plain_array(data: bytes, max_pixels: int) -> np.ndarray:
    """The array of a .npy. Raises Unread where its header claims more than the file holds."""
    _check_claim(io.BytesIO(data), len(data), max_pixels)
    return np.load(io.BytesIO(data), allow_pickle=False)


def only_array(data: bytes, max_pixels: int) -> np.ndarray:
    """The one array of an npz archive, or the one that is named image. Raises Unread."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        name = "image" if "image" in infos else next(iter(infos), "")
        if len(infos) != 1 and name != "image":
            first = ", ".join(list(infos)[:3])
            raise Unread(f"the archive holds {len(infos)} arrays ({first}); name one of them image")
        if (size := infos[name].file_size) > 20 * max_pixels:
            raise Unread(f"an array of {size:,} bytes is more than {max_pixels:,} pixels")
        with archive.open(infos[name]) as file:
            head = io.BytesIO(file.read(_HEADER))
        if head.getvalue()[:6] != np.lib.format.MAGIC_PREFIX:
            raise Unread(f"the archive holds no array: {name} is another file")
        _check_claim(head, size, max_pixels)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        array: np.ndarray = arrays[name]
        return array


_HEADER = 1 << 16
"""Bytes of the header of an array, at most."""


def _check_claim(file: io.BytesIO, size: int, max_pixels: int) -> None:
    """Raise Unread for an array of more bytes than the `size` that its file has, by its header."""
    read = {1: np.lib.format.read_array_header_1_0}.get(
        np.lib.format.read_magic(file)[0], np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    if min(shape, default=1) < 0 or (claimed := math.prod(shape) * dtype.itemsize) > size:
        raise Unread(f"its header claims an array of shape {shape} and type {dtype}, and the file is too short for it")
    if claimed > 20 * max_pixels:
        raise Unread(f"an array of {claimed:,} bytes is more than {max_pixels:,} pixels")


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


def bands_last(array: np.ndarray) -> np.ndarray:
    """HW as HWC of one band; HWC as it is."""
    return array[:, :, None] if array.ndim == 2 else array


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image.swapaxes(0, 1)[:, ::-1],
    7: lambda image: image.swapaxes(0, 1)[::-1, ::-1],
    8: lambda image: image.swapaxes(0, 1)[::-1],
}
"""Orientation number of EXIF -> the operation that turns an image upright."""


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image HWC turned upright by its EXIF orientation; unchanged for 1 and unknown numbers."""
    return TURNS[orientation](image) if orientation in TURNS else image


__all__ = ["EXTRA", "Deep", "Unread", "bands_last", "fits", "laid_out", "only_array", "plain_array", "upright"]
