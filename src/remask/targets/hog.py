"""HOG targets in their two flavours: DMJD's (2301.00230) and MaskFeat's (2112.09133, also FastMIM's 2212.06593).

Both hash every pixel's gradient, per channel, into unsigned orientation bins without interpolation and sum the
magnitudes over cells. They differ in the gradient, in the scale of a cell and in the order of a token's vector:

    central   next - previous, zero on the border; mean magnitude of a cell; cell row, cell column, bin, channel
    sobel     3×3 Sobel, border reflected; sum over a cell; channel, bin, cell row, cell column

Gradients of exactly 0 sit on a bin edge, so rounding moves whole pixels between bins: HOG is computed in fp32 on
integer pixel values, where both gradients are exact. A normalised float image is first turned back into integers.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from remask.types import Images, Size, UserError
from remask.views import Views

Flavour = Literal["central", "sobel"]
Norm = Literal["none", "l2", "layer"]


class Hog(nn.Module):
    """Histograms of oriented gradients, [B, N, C · bins · cells of a patch].

    patch    pixels of a patch, a multiple of `cell` both ways
    mean/std what a float image was normalised with; integers are taken as they are
    flavour  "central" (DMJD) or "sobel" (MaskFeat, FastMIM)
    cell     side of a cell in pixels
    norm     over the bins of each cell and channel: "layer" (LayerNorm without affine, DMJD), "l2" (MaskFeat), "none"
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        patch: Size,
        mean: Sequence[float],
        std: Sequence[float],
        flavour: Flavour = "central",
        cell: int = 8,
        bins: int = 9,
        norm: Norm = "layer",
    ) -> None:
        super().__init__()
        if patch[0] % cell or patch[1] % cell:
            raise UserError(
                f"a HOG cell of {cell} px does not divide a patch of {patch[0]}×{patch[1]} px; set target.cell"
            )
        self.patch, self.flavour, self.cell, self.bins, self.norm = patch, flavour, cell, bins, norm
        self.width = len(mean) * bins * (patch[0] // cell) * (patch[1] // cell)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Images, views: Views | None = None) -> Float[Tensor, "B N P"]:
        histogram = self.histogram(self._integers(images))  # fp32 also under autocast, which lowers none of these ops
        if self.norm == "l2":
            histogram = F.normalize(histogram, dim=2)
        elif self.norm == "layer":
            histogram = F.layer_norm(histogram.movedim(2, -1), (self.bins,)).movedim(-1, 2)
        return self._tokens(histogram)

    def histogram(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C bins h w"]:
        """Magnitude per orientation bin of each cell and channel, h = H / cell, w = W / cell; not normalised."""
        gradient = central_gradient if self.flavour == "central" else sobel_gradient
        down, right = gradient(pixels)
        magnitude = torch.hypot(down, right)
        across, along = (down, right) if self.flavour == "central" else (right, down)
        # half a millionth of a bin: 0 and 45 degrees, which integers hit exactly, then fall alike on every device
        index = (torch.atan2(across, along) * (self.bins / math.pi) + 5e-7).floor().remainder(self.bins).long()
        b, c, h, w = pixels.shape
        rows, cols = h // self.cell, w // self.cell
        histogram = pixels.new_zeros(b, c, self.bins, h, w).scatter_(2, index.unsqueeze(2), magnitude.unsqueeze(2))
        cells = histogram[..., : rows * self.cell, : cols * self.cell]
        cells = cells.unflatten(-1, (cols, self.cell)).unflatten(-3, (rows, self.cell)).sum((-3, -1))
        return cells / self.cell**2 if self.flavour == "central" else cells

    def _tokens(self, histogram: Float[Tensor, "B C bins h w"]) -> Float[Tensor, "B N P"]:
        """Cells to the tokens they lie in, in the order of the flavour's official code."""
        a, z = self.patch[0] // self.cell, self.patch[1] // self.cell
        b, c, bins, h, w = histogram.shape
        tokens = histogram.reshape(b, c, bins, h // a, a, w // z, z)
        order = (0, 3, 5, 4, 6, 2, 1) if self.flavour == "central" else (0, 3, 5, 1, 2, 4, 6)
        return tokens.permute(order).reshape(b, (h // a) * (w // z), self.width)

    def _integers(self, images: Images) -> Float[Tensor, "B C H W"]:
        """Pixel values 0..255 as floats; a normalised image is turned back and rounded where it came from integers."""
        if not images.is_floating_point():
            return images.float()
        pixels = (images.float() * self.std + self.mean) * 255
        nearest = pixels.round()
        return torch.where((pixels - nearest).abs() < 1e-2, nearest, pixels)

    def describe(self) -> str:
        norm = {"none": "", "l2": ", l2", "layer": ", LayerNorm"}[self.norm]
        return f"HOG {self.flavour} {self.cell} px{norm}"


def central_gradient(pixels: Float[Tensor, "B C H W"]) -> tuple[Tensor, Tensor]:
    """(down, right) as next - previous, without the half; zero on the first and last row (column)."""
    down, right = torch.zeros_like(pixels), torch.zeros_like(pixels)
    down[..., 1:-1, :] = pixels[..., 2:, :] - pixels[..., :-2, :]
    right[..., 1:-1] = pixels[..., 2:] - pixels[..., :-2]
    return down, right


def sobel_gradient(pixels: Float[Tensor, "B C H W"]) -> tuple[Tensor, Tensor]:
    """(down, right) of the 3×3 Sobel operator, previous - next as in MaskFeat, border reflected."""
    x = F.pad(pixels, (1, 1, 1, 1), mode="reflect")
    smooth_cols = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    smooth_rows = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    return smooth_cols[..., :-2, :] - smooth_cols[..., 2:, :], smooth_rows[..., :-2] - smooth_rows[..., 2:]
