"""Green noise as a pattern: blobs of about one size, neither single cells nor large regions (ColorMAE 2407.13036)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from remask.errors import UserError, setting
from remask.masking.scores import ALL, Guide, refuse_guide
from remask.types import Grid

RATIO = 2.0
"""σ2 / σ1."""
SIGMA = 2 * math.sqrt(math.log(RATIO) / (RATIO**2 - 1)) / math.pi
"""σ1 for a blob of one cell: the band's peak is then at a wave of two cells."""


@dataclass(frozen=True)
class Green:
    """ColorMAE's green noise: white noise W, G_σ1∗W - G_σ2∗W, around the border; where it is lowest is hidden.

    blob   size of hidden and of visible blobs in cells, 1 or more: half the wavelength that is strongest
    The paper does not print its σ. Here σ2 = 2 σ1, the classical ratio of two Gaussians that make a band; the response
    exp(-σ1² ω² / 2) - exp(-σ2² ω² / 2) peaks at ω² = 4 ln(σ2 / σ1) / (σ2² - σ1²), and ω = π / blob gives
    σ1 = .306 · blob, σ2 = .612 · blob, in cells. Any number of axes. Below 1.75 the noise is more even than random
    masks, whose clumps are of 1.8 cells where a quarter is visible.
    Raises UserError for blobs below one cell, and where a whole wave is longer than the longest axis of the grid.
    """

    blob: float = 2.0

    def __post_init__(self) -> None:
        if not self.blob >= 1:
            raise UserError(f"{setting('masking.blob', 'blob')} {self.blob:g} is below one cell: give 1 or more")

    def check(self, grid: Grid) -> None:
        """Raise UserError unless two blobs, hidden and visible, lie side by side on a grid of so many cells."""
        if 2 * self.blob > max(grid):
            name = setting("masking.pattern green: masking.blob", "blob")
            smaller = setting("masking.cell or masking.cell_pixels", "cells")
            raise UserError(
                f"{name} {self.blob:g} is too large for {'×'.join(map(str, grid))} cells: two lie side by side, so "
                f"give at most {max(grid) / 2:g}, or smaller {smaller}"
            )

    def describe(self) -> str:
        """A few words for the printed equation."""
        return f"green-noise masking in blobs of {self.blob:g}"

    def __call__(
        self,
        batch: int,
        grid: Grid,
        generator: Generator | None = None,
        rows: slice = ALL,
        guide: Guide | None = None,
    ) -> Float[Tensor, "B cells"]:
        refuse_guide(guide, "green-noise")
        self.check(grid)
        device = generator.device if generator else None
        white = torch.randn(batch, *grid, generator=generator, device=device)[rows]
        narrow, wide = (_blurred(white.double(), SIGMA * self.blob * factor) for factor in (1.0, RATIO))
        return (narrow - wide).flatten(1)


def _blurred(noise: Float[Tensor, "B *grid"], sigma: float) -> Float[Tensor, "B *grid"]:
    """G_σ∗noise around the border, one axis after the other, as products with circulant matrices.

    In float64, so that a rank's few rows round as the whole batch does.
    """
    for axis in range(1, noise.ndim):
        circulant = _circulant(noise.shape[axis], sigma, noise)
        noise = (noise.transpose(axis, -1) @ circulant).transpose(axis, -1)
    return noise


def _circulant(side: int, sigma: float, like: Tensor) -> Float[Tensor, "n n"]:
    """Row i: a Gaussian around cell i on a ring of `side` cells, which sums to 1. As many turns as it reaches."""
    turns = 1 + math.ceil(6 * sigma / side)
    cell = torch.arange(side, dtype=like.dtype, device=like.device)
    turn = side * torch.arange(-turns, turns + 1, dtype=like.dtype, device=like.device)
    distance = cell[:, None, None] - cell[None, :, None] + turn
    weight = torch.exp(-(distance**2) / (2 * sigma**2)).sum(-1)
    return weight / weight.sum(-1, keepdim=True)


__all__ = ["Green"]
