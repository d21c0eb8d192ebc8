"""Draws histograms of oriented gradients: in every cell a star of strokes along the edges.

Length and brightness of a stroke show the magnitude in its bin (Dalal and Triggs 2005, figure 6).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from remask.targets import Hog
from remask.types import Grid


def cells(hog: Hog, tokens: Float[Tensor, "B N P"], grid: Grid) -> Float[Tensor, "B C bins h w"]:
    """Histograms per channel and cell from token vectors: inverts the order in which `Hog` writes them."""
    (rows, cols), a, z = grid, hog.patch[0] // hog.cell, hog.patch[1] // hog.cell
    c = hog.width // (hog.bins * a * z)
    if hog.flavour == "central":
        tokens = tokens.reshape(-1, rows, cols, a, z, hog.bins, c).permute(0, 6, 5, 1, 3, 2, 4)
    else:
        tokens = tokens.reshape(-1, rows, cols, c, hog.bins, a, z).permute(0, 3, 4, 1, 5, 2, 6)
    return tokens.reshape(-1, c, hog.bins, rows * a, cols * z)


def magnitudes(hog: Hog, tokens: Float[Tensor, "B N P"], grid: Grid) -> Float[Tensor, "B bins h w"]:
    """Magnitudes to draw: positive parts (normalised histograms have negative values), averaged over channels."""
    return cells(hog, tokens.float(), grid).relu().mean(1)


def stars(
    magnitude: Float[Tensor, "B bins h w"], full: Float[Tensor, "B"], side: int, flavour: str = "central"
) -> Float[Tensor, "B Y X"]:
    """Brightness 0..1 of an image with `side` pixels per cell, Y = h · side, X = w · side.

    full      magnitude of a stroke of full length, per image
    flavour   of `Hog`, which defines the angle of a bin
    """
    b, bins, h, w = magnitude.shape
    share = (magnitude / full.clamp(min=1e-12).view(-1, 1, 1, 1)).clamp(0, 1)
    offset = (torch.arange(side, device=magnitude.device) + 0.5) - side / 2
    row, col = torch.meshgrid(offset, offset, indexing="ij")
    image = magnitude.new_zeros(b, h, w, side, side)
    for number in range(bins):
        down, right = edge_direction((number + 0.5) * math.pi / bins, flavour)
        along, away = (row * down + col * right).abs(), (row * right - col * down).abs()
        stroke = (max(0.5, side / 24) + 0.5 - away).clamp(0, 1)
        share_of_bin = share[:, number, :, :, None, None]
        reach = (share_of_bin.sqrt() * (side / 2) + 0.5 - along).clamp(0, 1)
        # weak strokes are short rather than dim, for predictions of a regression are weaker than targets
        image = torch.maximum(image, stroke * reach * share_of_bin.pow(0.25))
    return image.permute(0, 1, 3, 2, 4).reshape(b, h * side, w * side)


def edge_direction(angle: float, flavour: str) -> tuple[float, float]:
    """(down, right) of the edge whose gradient has this angle: perpendicular to it.

    "central" measures the angle from right to down, "sobel" from down to right (`Hog.histogram`).
    """
    return (math.cos(angle), -math.sin(angle)) if flavour == "central" else (math.sin(angle), -math.cos(angle))


__all__ = ["cells", "edge_direction", "magnitudes", "stars"]
