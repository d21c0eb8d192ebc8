"""Many images in one numpy file: an array of four axes, or of three with labels, and the labels beside it."""

import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from remask.errors import UserError
from remask.files.bounds import UNFOLDED_ARRAYS, UNFOLDED_FREE, open_regular, unfolds_to
from remask.files.system_errors import refuse_shortage
from remask.images.deep import laid_out
from remask.images.sources.addresses import entry_of
from remask.images.sources.files import printable
from remask.images.sources.labels import TextLabels, of_texts, says_none
from remask.images.sources.left_out import NO_LABEL

ARRAYS = (".npy", ".npz")
LABELS = ("labels", "label", "targets", "y")
"""Names of an archive's array with a class for each image."""
PAIRED = (("images", "labels"), ("image", "label"), ("data", "labels"), ("x", "y"), ("X", "Y"), ("X", "y"))
"""A part of the name of an array of images, and its replacement in the name of their classes: x_train and y_train."""
_BANDS = 4
"""An axis with at most so many entries may be that of colours."""


class Stack:
    """The images of an array NHWC or NCHW, whichever of the axes is the shorter, or NHW where it has labels; a .npy
    is mapped into memory.
    """

    def __init__(self, name: str, path: str, arrays: dict[str, np.ndarray], key: str, limit: int | None) -> None:
        self.name, self._path, self._key = name, os.path.abspath(path), key
        self._images, label_key = arrays[key][:limit], _labels_of(arrays, key)
        texts = [] if label_key is None else _texts(arrays[label_key].ravel()[:limit])
        self.labels, self.classes, self.unlabelled = of_texts(texts) if texts else TextLabels()
        unused = [other for other in arrays if other not in (key, label_key)]
        self.left_out: dict[str, int] = {"other arrays of the archive": len(unused)} if unused else {}
        if 0 < (missing := sum(map(says_none, texts))) < len(texts):
            self.left_out[NO_LABEL] = len(texts) - missing

    def __len__(self) -> int:
        return len(self._images)

    def read(self, i: int) -> np.ndarray:
        return laid_out(self._images[i], 0).values

    def where(self, i: int) -> str:
        return f"{printable(os.path.basename(self._path))}: {self._key} {i}"

    def entries(self) -> tuple[list[str], list[int], dict[str, Any]]:
        """Name and size of the file, and the array where one of several was named; see `fingerprint`."""
        named = {"array": self._key} if entry_of(self.name) else {}
        size = os.path.getsize(self._path) if os.path.isfile(self._path) else -1
        return [os.path.basename(self._path)], [size], named


def open_stack(name: str, path: str, limit: int | None, key: str | None = None) -> Stack | None:
    """The images of a .npy or .npz with an array of four axes, or of three with a label for each entry of the first;
    None where its array is one image.

    key   the array to take, where there are several
    Raises UserError for a file that cannot be read, for several such arrays and for an empty one.
    """
    arrays = _arrays(name, path)
    stacks = [entry for entry in arrays if _is_stack(arrays, entry)]
    if key is not None:
        if key not in stacks:
            known = f"those of images are {', '.join(stacks)}" if stacks else "it has no array of several images"
            raise UserError(f"{printable(name)}: {key} is no array of several images in it; {known}")
        stacks = [key]
    if len(stacks) > 1:
        shown = f"{printable(path)}:{next((entry for entry in stacks if 'train' in entry.lower()), stacks[0])}"
        raise UserError(
            f"{printable(name)} holds several sets of pictures ({', '.join(stacks)}): name one, as in {shown}"
        )
    if not stacks and len(arrays) > 1 and "image" not in arrays:
        shapes = ", ".join(f"{entry} of shape {array.shape}" for entry, array in [*arrays.items()][:4])
        raise UserError(
            f"{printable(name)} holds {len(arrays)} arrays and none of several images ({shapes}): save images with "
            "four axes (N, H, W, channels), or with three and a label each; or name a single one image"
        )
    if stacks and not arrays[stacks[0]].size:
        raise UserError(f"{printable(name)} holds no pictures: the shape of its array is {arrays[stacks[0]].shape}")
    return Stack(name, path, arrays, stacks[0], limit) if stacks else None


def _arrays(name: str, path: str) -> dict[str, np.ndarray]:
    """All arrays of a file. Raises UserError for one that numpy cannot read, or that would unfold without bound."""
    claimed = 0
    try:
        open_regular(path).close()
        claimed = os.path.getsize(path)
        arrays: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            return {"array": arrays}
        claimed = sum(info.file_size for info in arrays.zip.infolist())
        if why := unfolds_to(claimed, os.path.getsize(path), UNFOLDED_ARRAYS):
            raise ValueError(why)
        found = {key: arrays[key] for key in arrays.files}
        if others := [key for key, array in found.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{others[0]} is no array")
        return found
    except DAMAGED as error:
        refuse_shortage(error, path, claimed + UNFOLDED_FREE)
        why = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"{printable(name)} cannot be read as numpy's: {why or type(error).__name__}") from None


DAMAGED = (
    OSError, ValueError, EOFError, MemoryError, LookupError, TypeError, SyntaxError,
    ArithmeticError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip
"""What numpy, which reads a header as a literal of Python, and zipfile raise on damaged files."""


def _is_stack(arrays: Mapping[str, np.ndarray], key: str) -> bool:
    """Whether an array holds many images: it has four axes, or three without one of colours, and the archive has a
    class for each entry of the first. Three axes without such classes are one image.
    """
    shape = arrays[key].shape
    gray = len(shape) == 3 and min(shape[1:]) > _BANDS and arrays[key].dtype.kind in "biuf"
    return len(shape) == 4 or (gray and _labels_of(arrays, key) is not None)


def _labels_of(arrays: Mapping[str, np.ndarray], key: str) -> str | None:
    """The array with a class for every image of the array `key`."""
    paired = [re.sub(rf"(?<![a-zA-Z]){word}(?![a-zA-Z])", other, key) for word, other in PAIRED]
    names = [name for name in (*paired, *LABELS) if name in arrays and name != key]
    return next((name for name in dict.fromkeys(names) if _fits(arrays[name], len(arrays[key]))), None)


def _fits(labels: np.ndarray, count: int) -> bool:
    return labels.ndim <= 2 and labels.size == count and labels.dtype.kind in "iufUSb"


def _texts(values: np.ndarray) -> list[str]:
    """Classes, numbers or names, as texts."""
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    numbers = (int(value) if isinstance(value, float) and value.is_integer() else value for value in values.tolist())
    return [printable(str(value)) for value in numbers]


__all__ = ["ARRAYS", "Stack", "open_stack"]
