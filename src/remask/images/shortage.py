"""Memory that runs out while a picture is decoded: whether the machine lacks it, or the file claims what none needs."""

import io
from typing import Any

import numpy as np
from PIL import Image

from remask.files.bounds import MOST_BYTES_A_PIXEL, MOST_PIXELS
from remask.files.memory import has_room

FREE = 64 << 20
"""Bytes that decoding any picture may take besides its pixels."""


def claims_too_much(data: bytes | np.ndarray) -> str | None:
    """Why a picture is at fault for which an allocation failed; None where its pixels honestly need more than there is.

    A damaged file may ask for any number of bytes, for instance for its palette: then there is room for its pixels.
    """
    if isinstance(data, np.ndarray):
        return None
    width, height = _size(data)
    if not has_room(MOST_BYTES_A_PIXEL * min(width * height, MOST_PIXELS) + FREE):
        return None
    return "it claims more memory than its pixels need: it is damaged"


def shortage(data: bytes | np.ndarray) -> str:
    """The line for a user whose machine, or whose limit, has too little memory for a good picture."""
    width, height = _size(data)
    size = f" of {width}x{height} pixels" if width * height else ""
    most = MOST_BYTES_A_PIXEL * width * height
    needs = f", which takes up to {most / 1e9:.2g} GB" if width * height else ""
    return (
        f"the memory ran out while a picture{size} was decoded{needs}: nothing is wrong with it; free memory, use "
        "fewer runtime.workers, or make such pictures smaller with remask data pack SRC --size 256"
    )


def _size(data: bytes | np.ndarray) -> tuple[int, int]:
    """Width and height; 0 where the header tells none."""
    if isinstance(data, np.ndarray):
        return (int(data.shape[1]), int(data.shape[0])) if data.ndim in (2, 3) else (0, 0)
    try:
        with Image.open(io.BytesIO(data)) as image:
            size: Any = image.size
            return int(size[0]), int(size[1])
    except Exception:  # Pillow's plugins raise nearly everything on broken data
        return 0, 0


__all__ = ["claims_too_much", "shortage"]
