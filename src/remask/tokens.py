"""Pure functions between pixels, patches and token rows. Every other module speaks in these."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from remask.errors import UserError, setting
from remask.types import Features, Grid, Size

Pool = Literal["class", "mean"]
"""What stands for an image or a view: its class token, or the mean of its tokens."""


def pooled(features: Features, of: Pool, class_tokens: int = 1) -> Float[Tensor, "B 1 D"]:
    """The class token, the mean of several, or the mean of the tokens without prefix."""
    chosen = features.prefix[:, :class_tokens] if of == "class" else features.tokens
    return chosen.mean(dim=1, keepdim=True)


def grid_of(size: Size, patch: Size) -> Grid:
    """Rows and columns of the token grid of an image of `size` pixels; a remainder is an error of the caller."""
    return size[0] // patch[0], size[1] // patch[1]


def divisible_grid(size: Size, patch: Size) -> Grid:
    """`grid_of`, or a UserError where patches do not divide the image."""
    if size[0] % patch[0] or size[1] % patch[1]:
        raise UserError(
            f"an image of {size[0]}×{size[1]} px cannot be cut into patches of {patch[0]}×{patch[1]} px; "
            f"change {setting('data.image_size or backbone.patch_size', 'the image size or the patch')}"
        )
    return grid_of(size, patch)


def cell_of(pixels: int, patch: Size, stem: Size, named: str = "a masking cell of") -> tuple[int, Size]:
    """(units along a side of a mask cell, pixels of a unit): for cells of `pixels` a side on tokens of `patch` pixels.

    A unit is the largest square that cells and tokens are both made of: a token, unless cells cut tokens.
    stem    pixels that a mask can hide by themselves, of which cells are made
    named   the name of the number in the error
    Raises UserError where cells are not whole multiples of the stem's patch.
    """
    side = math.gcd(pixels, *patch)
    if side == patch[0] == patch[1] or not (side % stem[0] or side % stem[1]):
        return pixels // side, (side, side)
    in_patches = f"given in patches, {setting('masking.cell', 'cell')}"
    cure = f"whole patches of {stem[0]}×{stem[1]} px" if stem[0] == stem[1] else in_patches
    raise UserError(
        f"{named} {pixels} does not fit tokens of {patch[0]}×{patch[1]} px: a cell is {cure}; simmim's on a Swin is "
        "whole patches of its stem, and fastmim's may be a whole part of a token"
    )


def patchify(images: Num[Tensor, "B C H W"], patch: Size) -> Num[Tensor, "B N P"]:
    """Cut images into patches, raster order; a vector runs pixel row, pixel column, channel (MAE's layout)."""
    (b, c, h, w), (ph, pw) = images.shape, patch
    rows, cols = h // ph, w // pw
    return images.reshape(b, c, rows, ph, cols, pw).permute(0, 2, 4, 3, 5, 1).reshape(b, rows * cols, ph * pw * c)


def unpatchify(patches: Num[Tensor, "B N P"], grid: Grid, patch: Size) -> Num[Tensor, "B C H W"]:
    """The inverse of `patchify`."""
    (b, _, p), (rows, cols), (ph, pw) = patches.shape, grid, patch
    c = p // (ph * pw)
    folded = patches.reshape(b, rows, cols, ph, pw, c).permute(0, 5, 1, 3, 2, 4)
    return folded.reshape(b, c, rows * ph, cols * pw)


def split_tokens(tokens: Num[Tensor, "R n FP"], grid: Grid, cells: Grid) -> Num[Tensor, "R N P"]:
    """Each token's vector cut into `cells` rows × columns of shorter ones, in raster order on the grid of cells.

    grid   of the tokens, n = rows · columns; a token's vector holds those of its cells in raster order
    """
    cut = tokens.unflatten(-1, (*cells, -1)).unflatten(1, grid)
    return cut.transpose(2, 3).flatten(1, 4)


def coarse_ids(grid: Grid, tokens: Grid, device: torch.device) -> Int[Tensor, "N"]:
    """For each token of the grid, in raster order, the number of the patch of `tokens` rows and columns it lies in.

    Raises UserError where such patches do not tile the grid.
    """
    if any(side % size for side, size in zip(grid, tokens, strict=True)):
        wanted, there = ("×".join(map(str, sides)) for sides in (tokens, grid))
        raise UserError(f"patches of {wanted} tokens do not tile a grid of {there} tokens")
    rows, columns = (torch.arange(side, device=device) // size for side, size in zip(grid, tokens, strict=True))
    return (rows[:, None] * (grid[1] // tokens[1]) + columns).flatten()


def take(tokens: Num[Tensor, "R N D"], ids: Int[Tensor, "R K"]) -> Num[Tensor, "R K D"]:
    """The tokens that `ids` names, row by row."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def scatter(tokens: Num[Tensor, "R K D"], ids: Int[Tensor, "R K"], into: Num[Tensor, "R N D"]) -> Num[Tensor, "R N D"]:
    """A copy of `into` with `tokens` at the places `ids` names: the inverse of `take`."""
    return into.scatter(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]), tokens.to(into.dtype))


def sincos_positions(grid: Grid, width: int, prefix: int = 0) -> Float[Tensor, "N D"]:
    """MAE's fixed 2-D table: per axis [sin | cos] of pos · 10000^(-k / (D/4)), computed in float64.

    The first half of the channels encodes the column, the second the row (MoCo v3's table is the transpose: take
    a stored table as it is). `prefix` rows of zeros come first, for class and register tokens.
    """
    if width % 4:
        raise UserError(f"a 2-D sin-cos position table needs a width divisible by 4, not {width}")
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def axis(positions: Tensor) -> Tensor:
        angles = positions.double().flatten()[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    row, col = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    table = torch.cat([axis(col), axis(row)], dim=1)
    return torch.cat([table.new_zeros(prefix, width), table]).float()
