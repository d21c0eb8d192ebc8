"""The axes of the library and the names that cross module borders.

Axes, in shapes and in prose:

    V  masked views of an image (the papers' K)    B  images of the batch      VB  rows, row = v·B + b
    N  tokens of the grid                          K  visible tokens of a row  M   masked tokens of a row, K + M = N
    R  rows of a region: K or M or N               D  width of the backbone    P   width of a target
    S  prefix tokens (class, registers)            C  channels                 H W pixels
"""

from typing import NamedTuple, TypeAlias

from jaxtyping import Float, Int, UInt8, UInt16
from torch import Tensor

Grid: TypeAlias = tuple[int, ...]
"""Tokens along each axis of the grid: rows and columns of an image; N = their product."""

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

Images: TypeAlias = UInt8[Tensor, "B C H W"] | UInt16[Tensor, "B C H W"] | Float[Tensor, "B C H W"]
"""Pixels 0..255, or deeper ones in the range that the network knows; a float tensor is taken as already normalised."""

Ids: TypeAlias = Int[Tensor, "VB R"]
"""Token numbers in raster order, one row per masked view of an image."""

END, INPUT = -1, -2
"""Layers of a backbone beside its blocks 0 to depth - 1: the end, after the final norm; what enters the first block."""


class Features(NamedTuple):
    """What a backbone returns at one depth: its prefix tokens and its grid (or visible) tokens, kept apart."""

    prefix: Float[Tensor, "R S D"]
    tokens: Float[Tensor, "R N D"]


__all__ = ["END", "INPUT", "Features", "Grid", "Ids", "Images", "Size"]
