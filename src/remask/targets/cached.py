"""A teacher's features cached on disk: worth it where crops repeat and the disk is faster than the teacher.

Features are looked up by the content of a crop, and their file by the teacher's weights and settings, so that no crop
gets the features of another crop or teacher. docs/teachers.md says when it pays.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor, nn

from remask.errors import UserError
from remask.files.bounds import UNFOLDED_FREE
from remask.files.locking import open_lock, try_lock
from remask.files.system_errors import refuse_shortage
from remask.targets.tokens import content_key
from remask.tokens import grid_of
from remask.types import Images, Size
from remask.views import Views


class Cached(nn.Module):
    """A teacher of the whole image, [B, T, D], whose features are cached on disk in fp16.

    target    a `TokenTeacher` that sees the image, or a `MapTeacher`
    Nothing is cached before `reserve` is called: drawing a figure or counting leaves no files. Newly computed features
    are rounded to fp16 too, so that a run continues bit for bit, whatever was cached after its last checkpoint. Looking
    images up makes the step wait for the device.
    """

    shelf: "Shelf | None"

    def __init__(self, target: Any, folder: Path) -> None:
        super().__init__()
        self.target, self.folder, self.shelf = target, folder, None
        self.width, self.prefix = int(target.width), int(getattr(target, "prefix", 0))

    def reserve(self, images: int, size: Size) -> None:
        """Open the file for so many images of `size` pixels. Raises UserError where the disk has no room for it."""
        rows, columns = grid_of(size, self.target.patch)
        shape = (images, self.prefix + rows * columns, self.width)
        self.shelf = Shelf(self.folder / f"{fingerprint(self.target, shape, size)}.npy", shape)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it reads and writes files
    @torch.no_grad()
    def forward(self, images: Images, views: Views | None = None) -> Float[Tensor, "B T D"]:
        shelf = self.shelf
        if shelf is None or images.is_floating_point():
            return self.target(images)
        keys = content_key(images).tolist()
        known = [i for i, key in enumerate(keys) if key in shelf.places]
        fresh = [i for i, key in enumerate(keys) if key not in shelf.places]
        rows = torch.empty(len(keys), *shelf.shape[1:], dtype=torch.half, device=images.device)
        if known:
            rows[known] = shelf.read([keys[i] for i in known]).to(images.device)
        if fresh:
            computed = self.target(images[fresh]).half()
            shelf.keep([keys[i] for i in fresh], computed.cpu())
            rows[fresh] = computed
        return rows.float()

    def describe(self) -> str:
        size = f" ({self.shelf.describe()})" if self.shelf else ""
        return f"{self.target.describe()}, kept in {self.folder}{size}"


class Shelf:
    """Rows of fp16 in a file and their keys in another, [n, T, D] and [n]; a key of 0 is an empty place.

    One process at a time may add rows; others read those that it held when they opened it. A row is on the disk before
    its key.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path, self.shape, self.bytes = path, shape, 2 * math.prod(shape)
        path.parent.mkdir(parents=True, exist_ok=True)
        allocated = path.stat().st_blocks * 512 if path.is_file() else 0
        free = shutil.disk_usage(path.parent).free
        if self.bytes - allocated > free:
            raise UserError(
                f"{path.parent} has {free / 1e9:.1f} GB left, and the features of {self.describe()} take more: "
                "give distill.cache another folder, or leave it out"
            )
        self.lock = _lock(path.with_suffix(".lock"))
        if self.lock or _keys(path).is_file():
            self.rows, self.keys = self._open(path, np.float16, shape), self._open(_keys(path), np.int64, shape[:1])
        else:  # another process is about to make it
            self.rows, self.keys = np.empty((0, *shape[1:]), np.float16), np.empty(0, np.int64)
        self.places = {int(key): i for i, key in enumerate(self.keys) if key}

    def read(self, keys: Sequence[int]) -> Float16[Tensor, "n T D"]:
        """The rows of keys that are in `places`."""
        return torch.from_numpy(self.rows[[self.places[key] for key in keys]])

    def keep(self, keys: Sequence[int], rows: Float16[Tensor, "n T D"]) -> None:
        """Add the rows of new keys, as long as there is room."""
        start = len(self.places)
        new = list({key: i for i, key in enumerate(keys) if key not in self.places}.items())[: len(self.keys) - start]
        if not self.lock or not new:
            return
        end = start + len(new)
        self.rows[start:end] = rows[[i for _, i in new]].numpy()
        self.rows.flush()
        self.keys[start:end] = [key for key, _ in new]
        self.places |= {key: start + i for i, (key, _) in enumerate(new)}

    def _open(self, path: Path, kind: Any, shape: tuple[int, ...]) -> Any:
        try:
            if path.is_file():
                return np.lib.format.open_memmap(path, "r+" if self.lock else "r")
            return np.lib.format.open_memmap(path, "w+", kind, shape)
        except (OSError, ValueError) as error:
            refuse_shortage(error, path, self.bytes + UNFOLDED_FREE)
            raise UserError(f"{path} cannot be used as a cache of features: remove it, or {error}") from error

    def describe(self) -> str:
        return f"{self.bytes / 1e9:.3g} GB for {self.shape[0]:,} pictures"


def fingerprint(target: Any, *about: object) -> str:
    """A hash of a teacher's weights, constants and settings, and of `about`: the name of the file of its features."""
    settings = repr((target.describe(), target.patch, target.size, about))
    digest, network = hashlib.blake2b(settings.encode(), digest_size=12), target.network.networks[0]
    for tensor in (*target.buffers(), *network.parameters(), *network.buffers()):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _keys(path: Path) -> Path:
    return path.with_suffix(".keys.npy")


def _lock(path: Path) -> Any:
    """An open file that this process has locked, or None if another one has; the lock ends with the process."""
    file = os.fdopen(open_lock(path), "r+")
    if try_lock(file.fileno()):
        return file
    file.close()
    return None


__all__ = ["Cached", "Shelf", "fingerprint"]
