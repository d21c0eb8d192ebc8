"""Many pictures in one numpy file: an array of four axes, and the labels beside it."""

import os
import zipfile
from typing import Any

import numpy as np

from remask.errors import UserError
from remask.images.deep import laid_out
from remask.images.sources.files import printable

ARRAYS = (".npy", ".npz")
LABELS = ("labels", "label", "targets", "y")
"""Names of the classes' array in an archive, one number a picture."""


class Stack:
    """The pictures of an array NHWC or NCHW, whichever of the axes is the shorter; a .npy is mapped into memory."""

    def __init__(self, name: str, path: str, arrays: dict[str, np.ndarray], key: str, limit: int | None) -> None:
        self.name, self._path, self._key = name, os.path.abspath(path), key
        self._pictures, found = arrays[key][:limit], next((arrays[key] for key in LABELS if key in arrays), None)
        fits = found is not None and found.ndim <= 2 and found.size == len(arrays[key]) and found.dtype.kind in "iu"
        self.labels: list[int] | None = found.ravel()[:limit].tolist() if fits and found is not None else None
        self.classes: list[str] | None = None
        passed = [other for other in arrays if other != key and not (fits and other in LABELS)]
        self.left_out: dict[str, int] = {"other arrays of the archive": len(passed)} if passed else {}

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, i: int) -> np.ndarray:
        return laid_out(self._pictures[i], 0).values

    def where(self, i: int) -> str:
        return f"{printable(os.path.basename(self._path))}: {self._key} {i}"


def open_stack(name: str, path: str, limit: int | None) -> Stack | None:
    """The pictures of a .npy or .npz with an array of four axes; None where its array is one picture.

    Raises UserError for a file that cannot be read, for several such arrays and for an empty one.
    """
    try:
        arrays: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        arrays = {"array": arrays} if isinstance(arrays, np.ndarray) else {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{printable(name)} cannot be read as numpy's: {' '.join(str(error).split())}") from None
    stacks = [key for key, array in arrays.items() if array.ndim == 4]
    if len(stacks) > 1:
        raise UserError(f"{printable(name)} holds several sets of pictures ({', '.join(stacks)}): save each by itself")
    if stacks and not arrays[stacks[0]].size:
        raise UserError(f"{printable(name)} holds no pictures: the shape of its array is {arrays[stacks[0]].shape}")
    return Stack(name, path, arrays, stacks[0], limit) if stacks else None


__all__ = ["ARRAYS", "Stack", "open_stack"]
